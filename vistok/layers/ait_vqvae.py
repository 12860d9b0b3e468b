"""The VQ-VAE of "All in Tokens" (arXiv:2301.02229): depth maps of AURORA (arXiv:2412.03548), masks of PaliGemma
(arXiv:2407.07726), and other maps of few channels.

encoder: n = log2(downsample) convolutions 4x4 of stride 2 (C -> h -> 2h ..), R residual blocks, 1x1 to the code width;
decoder: the reverse. No norm layers outside of "v2" blocks, no activation at either end. Keys as their authors named
them, so that their files load unchanged. B maps, C channels, H and W pixels, h and w rows and columns of codes.
"""

from math import log2
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vistok.layers.ait_codes import LearnedCodes, MovingCodes
from vistok.layers.map_losses import MAP_LOSSES
from vistok.protocols import Quantized


class ResidualV1(nn.Module):
    """x + conv1x1(relu(conv3x3(relu(conv3x3(x))))), nothing behind the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, h, w] -> the same shape."""
        out: Tensor = self.net(x)
        return out + x


class ResidualV2(nn.Module):
    """relu(x + bn(conv3x3(relu(bn(conv3x3(x)))))), the convolutions without biases."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, h, w] -> the same shape."""
        return torch.relu(self.net(x) + x)


BLOCKS = {"v1": ResidualV1, "v2": ResidualV2}


class MapReconstruction(NamedTuple):
    """maps [B, C, H, W] as `AitVqvae.decode` gives them; loss [] = reconstruction [] + the quantizer's; what it did."""

    maps: Tensor
    loss: Tensor
    reconstruction: Tensor
    quantized: Quantized


class AitVqvae(nn.Module):
    """Maps [B, C, H, W] to ids [B, h, w] and back."""

    def __init__(
        self,
        *,
        channels: int = 1,
        out_channels: int | None = None,
        downsample: int = 32,
        codes: int = 128,
        codebook_dim: int = 512,
        hidden: int = 16,
        blocks: int = 2,
        block: str = "v1",
        use_norm: bool = False,
        max_value: float = 1.0,
        loss: str = "mse",
        commitment: float = 0.25,
        decay: float = 0.99,
        init: str = "kmeans",
        revive_after: int = 100,
    ) -> None:
        """use_norm: maps lie in 0..max_value and the network sees them in -1..1; without it they are taken as they are.

        out_channels: another number than channels, for example of classes where loss is "cross_entropy". decay: of the
        codes' moving averages, 0 = codes that learn by gradient. init, revive_after: as of `MovingCodes`.
        Raises: ValueError for an unknown block or loss, a downsample that is no power of two from 2 on, or
        "cross_entropy" with use_norm, which would scale class numbers.
        """
        super().__init__()
        if block not in BLOCKS or loss not in MAP_LOSSES:
            raise ValueError(
                f"AitVqvae: expected block in {tuple(BLOCKS)} and loss in {tuple(MAP_LOSSES)}, got {block!r}, {loss!r}"
            )
        if downsample < 2 or downsample & (downsample - 1):
            raise ValueError(f"AitVqvae: expected downsample to be a power of two from 2 on, got {downsample}")
        self.classes = loss == "cross_entropy"
        if self.classes and use_norm:
            raise ValueError("AitVqvae: cross_entropy takes class numbers, which use_norm would scale; leave it off")
        self.channels, self.downsample = channels, downsample
        self.use_norm, self.max_value = use_norm, max_value
        self.loss = MAP_LOSSES[loss]
        levels = int(log2(downsample))
        widths = [hidden << level for level in range(levels)]
        make = BLOCKS[block]
        down: list[nn.Module] = []
        for before, after in zip([channels, *widths[:-1]], widths, strict=True):
            down += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        down += [make(widths[-1]) for _ in range(blocks)]
        self.encoder = nn.Sequential(*down, nn.Conv2d(widths[-1], codebook_dim, 1))
        up: list[nn.Module] = [nn.Conv2d(codebook_dim, widths[-1], 1), nn.ReLU()]
        up += [make(widths[-1]) for _ in range(blocks)]
        for before, after in zip([widths[-1], *widths[:0:-1]], widths[::-1], strict=True):
            up += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        self.decoder = nn.Sequential(*up, nn.Conv2d(hidden, out_channels or channels, 1))
        self._vq_vae: MovingCodes | LearnedCodes
        if decay:
            self._vq_vae = MovingCodes(
                codes, codebook_dim, commitment=commitment, decay=decay, init=init, revive_after=revive_after
            )
        else:
            self._vq_vae = LearnedCodes(codes, codebook_dim, commitment=commitment)

    @property
    def codes(self) -> MovingCodes | LearnedCodes:
        """The quantizer."""
        return self._vq_vae

    @property
    def codebook(self) -> Tensor:
        """The codes [K, D] float32."""
        return self._vq_vae.codebook

    def features(self, maps: Tensor) -> Tensor:
        """maps [B, C, H, W] -> vectors to quantize [B, D, h, w].

        Raises: ValueError naming the shape if sides are no multiples of `downsample` or channels do not fit.
        """
        fits = maps.ndim == 4 and maps.shape[1] == self.channels
        if not fits or maps.shape[2] % self.downsample or maps.shape[3] % self.downsample:
            raise ValueError(
                f"AitVqvae: expected maps [B, {self.channels}, H, W] with sides that are multiples of "
                f"{self.downsample}, got {list(maps.shape)}; resize them first"
            )
        features: Tensor = self.encoder(self._inside(maps).to(next(self.encoder.parameters()).dtype))
        return features

    @torch.no_grad()
    def encode(self, maps: Tensor) -> Tensor:
        """maps [B, C, H, W] -> ids [B, h, w] int64, as in evaluation: they hang on no other map, and no code moves.

        Raises: as `features`.
        """
        was_training = self.training
        self.eval()
        try:
            quantized: Quantized = self._vq_vae(self.features(maps).permute(0, 2, 3, 1))
        finally:
            self.train(was_training)
        return quantized.indices

    def decode(self, ids: Tensor) -> Tensor:
        """ids [B, h, w] int64 -> maps [B, C, H, W] on the scale of the input, not clamped; class numbers [B, 1, H, W].

        Raises: ValueError for ids that are no codes.
        """
        return self.decode_vectors(self._vq_vae.lookup(ids).permute(0, 3, 1, 2))

    def decode_vectors(self, vectors: Tensor) -> Tensor:
        """vectors [B, D, h, w], codes or mixtures of them -> as `decode`."""
        return self._outside(self._decoded(vectors))

    def forward(self, maps: Tensor, target: Tensor | None = None) -> MapReconstruction:
        """maps [B, C, H, W] -> reconstruction and losses; target: what to reconstruct, if not the maps.

        The loss is taken on the network's own scale, -1..1 with use_norm.
        """
        quantized: Quantized = self._vq_vae(self.features(maps).permute(0, 2, 3, 1))
        out = self._decoded(quantized.embeds.permute(0, 3, 1, 2)).float()
        wanted = (maps if target is None else target).float()
        reconstruction = self.loss(out, wanted if self.classes else self._inside(wanted))
        return MapReconstruction(self._outside(out), reconstruction + quantized.loss, reconstruction, quantized)

    def _decoded(self, vectors: Tensor) -> Tensor:
        out: Tensor = self.decoder(vectors.to(next(self.decoder.parameters()).dtype))
        return out

    def _inside(self, maps: Tensor) -> Tensor:
        return 2 * (maps / self.max_value - 0.5) if self.use_norm else maps

    def _outside(self, out: Tensor) -> Tensor:
        if self.classes:
            return out.argmax(1, keepdim=True)
        return (out * 0.5 + 0.5) * self.max_value if self.use_norm else out
