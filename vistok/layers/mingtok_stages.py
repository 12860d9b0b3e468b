"""The three stages of MingTok (arXiv:2510.06590, section 2): low-level encoder, semantic decoder, pixel decoder.

B images, N = gh*gw patches in raster order, C latent channels, W width of a stage. The class token comes last.
"""

import math

import torch
from torch import Tensor, nn

from vistok.layers.key_value_cache import KeyValueCache
from vistok.layers.vit_block import EPS, BlockStack


class PatchEmbed(nn.Module):
    """A convolution whose stride is its kernel."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, N, W]."""
        out: Tensor = self.proj(images).flatten(2).transpose(1, 2)
        return out


class LowLevelEncoder(nn.Module):
    """Images to raw latents; the output is a projection beside the mean of groups of channels."""

    def __init__(
        self, img_size: int, patch_size: int, depth: int, embed_dim: int, out_dim: int, ffn_layer: str = "mlp"
    ) -> None:
        """Raises: ValueError for an image size that the patch does not divide, or a width that out_dim does not."""
        super().__init__()
        if img_size < patch_size or img_size % patch_size or embed_dim % out_dim:
            raise ValueError(
                f"low_level_encoder: expected img_size in multiples of patch_size and embed_dim in multiples of "
                f"out_dim, got {img_size}, {patch_size}, {embed_dim} and {out_dim}"
            )
        self.patch_size, self.out_dim = patch_size, out_dim
        self.side = img_size // patch_size
        self.patch_embed = PatchEmbed(embed_dim, patch_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, self.side**2 + 1, embed_dim))
        self.blocks = BlockStack(embed_dim, depth, ffn_layer)
        self.out_norm = nn.LayerNorm(embed_dim, eps=EPS)
        self.out_proj = nn.Linear(embed_dim, out_dim)
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.02)

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of patches of [B, 3, H, W]. Raises: ValueError unless a patch divides both sides."""
        height, width = images.shape[2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"low_level_encoder: expected sides in multiples of {self.patch_size} pixels, got {height}x{width}"
            )
        return height // self.patch_size, width // self.patch_size

    def forward(self, images: Tensor, masked: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        """images [B, 3, H, W] in [-1, 1] -> raw latents [B, N + 1, C].

        masked [B, N] bool: patches in whose place `mask_token` [W] enters. Raises: ValueError as `grid`.
        """
        x = self.blocks(self.embed(images, masked, mask_token))
        shortcut = x.unflatten(-1, (self.out_dim, -1)).mean(-1)
        out: Tensor = shortcut + self.out_proj(nn.functional.gelu(self.out_norm(x)))
        return out

    def embed(self, images: Tensor, masked: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        """What the first block takes: patches, then the class token, with their positions: [B, N + 1, W]."""
        grid = self.grid(images)
        patches = self.patch_embed(images)
        if masked is not None and mask_token is not None:
            patches = torch.where(masked[..., None], mask_token.to(patches.dtype), patches)
        x = torch.cat([patches, self.cls_token.expand(len(patches), -1, -1)], 1)
        return x + self.positions(grid)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """The table for a grid: [1, N + 1, W]."""
        side = self.side
        if grid == (side, side):
            return self.pos_embed
        table = self.pos_embed[:, :-1].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
        # Released weights were made with these very factors: a tenth of a cell more than the ratio shifts the samples.
        factors = [(cells + 0.1) / side for cells in grid]
        resized = nn.functional.interpolate(table, scale_factor=factors, mode="bicubic")
        rows = resized.flatten(2).transpose(1, 2).to(self.pos_embed.dtype)
        return torch.cat([rows, self.pos_embed[:, -1:]], 1)


class SemanticDecoder(nn.Module):
    """Raw latents to semantic tokens, each from itself and those before it; the input path repeats channels."""

    def __init__(
        self, in_dim: int, patch_size: int, embed_dim: int, decoder_depth: int, ffn_layer: str = "mlp"
    ) -> None:
        """Raises: ValueError for a width that in_dim does not divide."""
        super().__init__()
        if embed_dim % in_dim:
            raise ValueError(f"semantic_decoder: expected embed_dim in multiples of in_dim, got {embed_dim}, {in_dim}")
        self.patch_size, self.embed_dim = patch_size, embed_dim
        self.in_proj = nn.Linear(in_dim, embed_dim)
        self.blocks = BlockStack(embed_dim, decoder_depth, ffn_layer, causal=True)
        self.norm = nn.LayerNorm(embed_dim, eps=EPS)

    def forward(self, latents: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """latents [B, S, C] raw -> [B, S, W]; with a cache, they continue what it has seen."""
        out: Tensor = self.norm(self.blocks(self.embed(latents), cache))
        return out

    def embed(self, latents: Tensor) -> Tensor:
        """What the first block takes: [B, S, C] -> [B, S, W]."""
        repeats = self.embed_dim // latents.shape[-1]
        embedded: Tensor = self.in_proj(latents) + latents.repeat_interleave(repeats, -1)
        return embedded

    def new_cache(self) -> KeyValueCache:
        """An empty cache for `forward`."""
        return KeyValueCache(self.blocks.depth)


class PixelDecoder(nn.Module):
    """Pixel tokens to patches of pixels, with full attention and no positions."""

    def __init__(self, patch_size: int, embed_dim: int, decoder_depth: int) -> None:
        super().__init__()
        self.patch_size, self.embed_dim = patch_size, embed_dim
        self.blocks = BlockStack(embed_dim, decoder_depth)
        self.norm = nn.LayerNorm(embed_dim, eps=EPS)
        self.head = nn.Linear(embed_dim, 3 * patch_size**2)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, M, W] -> patches [B, M, 3 p^2], in `vistok.layers.patchify`'s order."""
        out: Tensor = self.head(self.norm(self.blocks(tokens)))
        return out


def spread(tokens: Tensor, grid: tuple[int, int], factor: int) -> Tensor:
    """Each token becomes factor x factor tokens: [B, N, factor^2 W] -> [B, factor^2 N, W], raster order.

    Within a token the values lie in the order (row, column, channel).
    """
    rows, cols = grid
    cells: Tensor = tokens.unflatten(-1, (factor, factor, -1)).unflatten(1, (rows, cols))
    return cells.permute(0, 1, 3, 2, 4, 5).flatten(1, 4)


def init_stages(model: nn.Module) -> None:
    """Xavier uniform for every linear layer and patch projection below `model`, biases zero."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            fan_out, fan_in = layer.weight.shape[0], math.prod(layer.weight.shape[1:])
            bound = (6 / (fan_in + fan_out)) ** 0.5
            nn.init.uniform_(layer.weight, -bound, bound)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
