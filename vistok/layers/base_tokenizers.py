"""What lies below a 1-D tokenizer: a 2-D tokenizer whose latents it reads and writes, or plain patches of pixels.

Each base says how many `channels` of latents join the patch embedding, how many numbers `out` per grid token the 1-D
decoder predicts, and how these become pixels. B images, h x w = N grid tokens, E channels.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vistok.layers.ldm_vae import LdmVae
from vistok.layers.maskgit_vqgan import MaskGitVqgan, decode_grid, soft_codes


class Features(NamedTuple):
    """latents [B, E, h, w] beside the patch embedding; target: what the decoder should predict, per grid token."""

    latents: Tensor
    target: Tensor


class VqganBase(nn.Module):
    """The decoder predicts logits over the VQGAN's codes; pixels come from the codes' mean under softmax."""

    centre = 0.0
    draws = False

    def __init__(self, patch: int, **sizes: Any) -> None:
        """sizes: of `MaskGitVqgan`. Raises: ValueError if its levels do not make patches of that size."""
        super().__init__()
        self.vqgan = MaskGitVqgan(**sizes)
        _check_patch("vqgan", patch, len(self.vqgan.encoder.down))
        self.out, self.channels = self.vqgan.codebook.shape

    def features(self, images: Tensor, noise: Tensor | None = None) -> Features:
        """images [B, 3, H, W] -> features before quantization, target: indices [B, N]."""
        return Features(*self.vqgan.encode(images))

    def pixels(self, decoded: Tensor, grid: tuple[int, int]) -> Tensor:
        """decoded [B, N, out] -> images [B, 3, H, W], not clamped."""
        return self.vqgan.decode_soft(decoded, grid)

    def terms(self, decoded: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Distillation: cross entropy with the codes of the image, squared error between soft and true code vector."""
        nll = nn.functional.cross_entropy(decoded.flatten(0, 1).float(), target.flatten())
        soft = soft_codes(decoded.float(), self.vqgan.codebook)
        return {"nll": nll, "code": nn.functional.mse_loss(soft, self.vqgan.codebook[target])}

    @property
    def last_layer(self) -> Tensor:
        """The weight against whose gradients an adversarial loss is balanced."""
        return self.vqgan.decoder.conv_out.weight


class VaeBase(nn.Module):
    """The decoder predicts the VAE's latents times `scale`, and the VAE's decoder is given them as they are.

    Released weights were tuned without undoing the scale, hence `decoder_scale` = 1; 1 / scale would undo it.
    """

    centre = 0.0
    draws = True

    def __init__(self, patch: int, scale: float = 0.2325, decoder_scale: float = 1.0, **sizes: Any) -> None:
        """sizes: of `LdmVae`. Raises: ValueError if its levels do not make patches of that size."""
        super().__init__()
        self.vae = LdmVae(**sizes)
        _check_patch("vae", patch, len(self.vae.encoder.down))
        self.scale, self.decoder_scale = scale, decoder_scale
        self.out = self.channels = self.vae.post_quant_conv.in_channels

    def features(self, images: Tensor, noise: Tensor | None = None) -> Features:
        """images [B, 3, H, W], noise [B, E, h, w] or None for the posterior's mean; target: scaled z [B, N, E]."""
        posterior = self.vae.posterior(images)
        z = posterior.mean
        if noise is not None:
            z = z + torch.exp(0.5 * posterior.logvar) * noise.permute(0, 2, 3, 1)
        z = (z * self.scale).to(images.dtype)
        return Features(z.permute(0, 3, 1, 2), z.flatten(1, 2))

    def pixels(self, decoded: Tensor, grid: tuple[int, int]) -> Tensor:
        """decoded [B, N, E] -> images [B, 3, H, W], not clamped."""
        latents = decoded.transpose(1, 2).unflatten(2, grid)
        return self.vae.decode(latents * self.decoder_scale)

    def terms(self, decoded: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Distillation: squared error between predicted and true latents."""
        return {"code": nn.functional.mse_loss(decoded.float(), target.float())}

    @property
    def last_layer(self) -> Tensor:
        """The weight against whose gradients an adversarial loss is balanced."""
        return self.vae.decoder.conv_out.weight


class PixelBase(nn.Module):
    """No tokenizer below: the decoder predicts the pixels of each patch, counted from mid-grey."""

    centre = 0.5
    draws = False
    channels = 0

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.out = 3 * patch**2

    def features(self, images: Tensor, noise: Tensor | None = None) -> Features:
        """images [B, 3, H, W] -> no latents, target: patches [B, N, 3 patch^2] from mid-grey."""
        patches = nn.functional.pixel_unshuffle(images - self.centre, self.patch)
        return Features(patches[:, :0], patches.flatten(2).transpose(1, 2))

    def pixels(self, decoded: Tensor, grid: tuple[int, int]) -> Tensor:
        """decoded [B, N, 3 patch^2] -> images [B, 3, H, W], not clamped."""
        return decode_grid(nn.PixelShuffle(self.patch), decoded, grid) + self.centre

    def terms(self, decoded: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Absolute error and twice the squared error of the pixels."""
        difference = decoded.float() - target.float()
        return {"l1": difference.abs().mean(), "mse": 2 * difference.square().mean()}


BASES: dict[str, Any] = {"vqgan": VqganBase, "vae": VaeBase, "pixels": PixelBase}


def make_base(method: str, patch: int, **sizes: Any) -> Any:
    """A base by name. Raises: ValueError if there is none of that name."""
    if method not in BASES:
        raise ValueError(f"base tokenizer: expected one of {', '.join(BASES)}, got {method!r}")
    return BASES[method](patch, **sizes)


def _check_patch(name: str, patch: int, levels: int) -> None:
    if patch != 2 ** (levels - 1):
        raise ValueError(f"{name}: {levels} levels make patches of {2 ** (levels - 1)} pixels, got patch={patch}")
