"""One transformer block, as query tokens pass through it that no other token sees.

The block's own forward is left alone: hooks keep what the queries need of its tokens, and its submodules then do for
the queries what they did for the tokens. B images, T queries, N tokens, D width; queries [b, T, D] with b = 1 or B.
"""

import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, cast

import torch
from open_clip.transformer import ResidualAttentionBlock
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, ResPostBlock
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vistok.readouts._attention_weights import AttentionWeights, TimmAttention, TorchAttention
from vistok.readouts._query_attention import folded_attention, plain_attention

Mode = Literal["folded", "kv", "qkv", "masked"]


class UnsupportedBackboneError(TypeError):
    """A backbone whose blocks query tokens cannot pass through."""


class Kept(NamedTuple):
    """What one block's tokens left behind.

    mode "folded": what its attention read [B, N, D]; "kv": keys and values [B, H, N, d]; "qkv": the fused projection
    [B, N, 3 H d]; "masked": the block's input [B, N, D].
    """

    mode: Mode
    tensors: tuple[Tensor, ...]

    def map(self, change: Callable[[Tensor], Tensor]) -> "Kept":
        """The same of each tensor."""
        return Kept(self.mode, tuple(map(change, self.tensors)))


class QueryBlock(Protocol):
    """A block for queries."""

    def settle(self, mode: str) -> Mode:
        """The mode meant by "auto", or the one given. Raises: UnsupportedBackboneError if the block has it not."""
        ...

    def watch(self, mode: Mode, keep: Callable[[Kept], None]) -> RemovableHandle:
        """Hook the block so that its next forward calls `keep` once."""
        ...

    def read(self, queries: Tensor, kept: Kept) -> Tensor:
        """queries [b, T, D] -> [B, T, D]."""
        ...


def query_block(block: nn.Module) -> QueryBlock:
    """The adapter that fits a block. Raises: UnsupportedBackboneError naming its class if there is none."""
    attn: Any = getattr(block, "attn", None)
    # A subclass may attend in another way; the mask below is right for it all the same.
    known = isinstance(attn, Attention) and type(attn).forward is Attention.forward
    if type(block) is Block and known:
        return _PreNorm(block)
    if type(block) is ResPostBlock and known:
        return _PostNorm(block)
    # What tuners put in the place of torch's attention still shows the matrix underneath, without what was learned.
    plain = type(attn) is nn.MultiheadAttention and attn.batch_first
    if type(block) is ResidualAttentionBlock and plain and not hasattr(block, "ln_1_kv"):
        return _OpenClip(block)
    return masked_block(block)


def masked_block(block: nn.Module) -> QueryBlock:
    """A block read through its mask. Raises: UnsupportedBackboneError naming its class if that is not enough."""
    parameters = inspect.signature(block.forward).parameters
    others = [name for name, value in parameters.items() if value.default is value.empty]
    if "attn_mask" not in parameters or "rope" in parameters or len(others) != 1:
        raise UnsupportedBackboneError(
            f"{type(block).__name__}: expected a block of timm's VisionTransformer or of open_clip, or one whose "
            f"forward takes tokens and attn_mask, got forward({', '.join(parameters)})"
        )
    return _Masked(block)


class _PreNorm:
    """timm's `Block`: z = q + ls1(attn(norm1(q))), z + ls2(mlp(norm2(z)))."""

    def __init__(self, block: Any) -> None:
        self.block = block

    @property
    def attention(self) -> TimmAttention:
        return TimmAttention(self.block.attn)

    def settle(self, mode: str) -> Mode:
        return _settle(self.block, self.attention, mode)

    def watch(self, mode: Mode, keep: Callable[[Kept], None]) -> RemovableHandle:
        return _watch_timm(self.block.attn, mode, keep)

    def read(self, queries: Tensor, kept: Kept) -> Tensor:
        block = self.block
        z = queries + block.ls1(_attend(self.attention, block.norm1(queries), kept))
        out: Tensor = z + block.ls2(block.mlp(block.norm2(z)))
        return out


class _PostNorm(_PreNorm):
    """timm's `ResPostBlock`: z = q + norm1(attn(q)), z + norm2(mlp(z))."""

    def read(self, queries: Tensor, kept: Kept) -> Tensor:
        block = self.block
        z = queries + block.norm1(_attend(self.attention, queries, kept))
        out: Tensor = z + block.norm2(block.mlp(z))
        return out


class _OpenClip:
    """open_clip's `ResidualAttentionBlock`, pre-norm with torch's own attention."""

    def __init__(self, block: Any) -> None:
        self.block = block

    @property
    def attention(self) -> TorchAttention:
        return TorchAttention(self.block.attn)

    def settle(self, mode: str) -> Mode:
        return _settle(self.block, self.attention, mode)

    def watch(self, mode: Mode, keep: Callable[[Kept], None]) -> RemovableHandle:
        attention = self.attention

        def hook(_module: nn.Module, _args: Any, normed: Tensor) -> None:
            keep(Kept(mode, (normed,)) if mode == "folded" else _kept(attention, mode, attention.project(normed)))

        # torch's attention leaves its fast path, and its last bits, where it has hooks of its own.
        return cast(RemovableHandle, self.block.ln_1.register_forward_hook(hook))

    def read(self, queries: Tensor, kept: Kept) -> Tensor:
        block = self.block
        z = queries + block.ls_1(_attend(self.attention, block.ln_1(queries), kept))
        out: Tensor = z + block.ls_2(block.mlp(block.ln_2(z)))
        return out


class _Masked:
    """Any block that takes an additive mask: it runs again on queries and tokens, and nothing looks at the queries.

    Slow, and backward keeps all of it; also what the other adapters are compared with.
    """

    def __init__(self, block: nn.Module) -> None:
        self.block = block

    def settle(self, mode: str) -> Mode:
        if mode not in ("auto", "masked"):
            raise UnsupportedBackboneError(
                f"{type(self.block).__name__}: expected kv_mode 'auto' or 'masked' for such a block, got {mode!r}"
            )
        return "masked"

    def watch(self, mode: Mode, keep: Callable[[Kept], None]) -> RemovableHandle:
        def hook(_module: nn.Module, args: Any) -> None:
            keep(Kept("masked", (args[0],)))

        return self.block.register_forward_pre_hook(hook)

    def read(self, queries: Tensor, kept: Kept) -> Tensor:
        (tokens,) = kept.tensors
        count, total = queries.shape[1], queries.shape[1] + tokens.shape[1]
        mask = queries.new_zeros(total, total)
        mask[:, :count] = -torch.inf
        both = torch.cat([queries.expand(len(tokens), -1, -1), tokens.to(queries.dtype)], 1)
        # Past the hooks of the block, which tuners that change its input have put there: that input is `tokens`.
        out: Tensor = self.block.forward(both, attn_mask=mask)[:, :count]
        return out


def _settle(block: nn.Module, attention: AttentionWeights, mode: str) -> Mode:
    if mode == "auto":
        return "folded" if attention.foldable else "kv"
    if mode == "folded" and not attention.foldable:
        raise UnsupportedBackboneError(
            f"{type(block).__name__}: expected plain linear keys for kv_mode 'folded', got normalised or tuned ones; "
            "use 'kv'"
        )
    return cast(Mode, mode)


def _watch_timm(attn: Any, mode: Mode, keep: Callable[[Kept], None]) -> RemovableHandle:
    if mode == "folded":

        def before(_module: nn.Module, args: Any) -> None:
            keep(Kept(mode, (args[0],)))

        return cast(RemovableHandle, attn.register_forward_pre_hook(before))

    def after(_module: nn.Module, _args: Any, fused: Tensor) -> None:
        keep(_kept(TimmAttention(attn), mode, fused))

    return cast(RemovableHandle, attn.qkv.register_forward_hook(after))


def _kept(attention: AttentionWeights, mode: Mode, fused: Tensor) -> Kept:
    if mode == "qkv":
        return Kept(mode, (fused,))
    # Copies, so that the third with the queries can go; with a gradient it stays anyway.
    return Kept(mode, tuple(part if part.requires_grad else part.contiguous() for part in attention.key_value(fused)))


def _attend(attention: AttentionWeights, normed: Tensor, kept: Kept) -> Tensor:
    q = attention.query(normed)
    if kept.mode == "folded":
        heads = folded_attention(q, kept.tensors[0], *attention.folded(), attention.scale)
    else:
        k, v = kept.tensors if kept.mode == "kv" else attention.key_value(kept.tensors[0])
        heads = plain_attention(q, k, v, attention.scale)
    return attention.output(heads, normed)
