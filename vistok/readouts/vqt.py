"""VQT: query tokens in every block of a frozen vision transformer (Tu, Mai, Chao, CVPR 2023, arXiv:2212.03220).

T learned tokens P_l join the attention of block l as queries only, so that the backbone's own tokens stay bit for bit
what they were:
    Q = dropout(P_l),  O = attn(queries: LN1(Q); keys, values: LN1(X_l)),  Z' = Q + O,  Z_l = Z' + MLP(LN2(Z'))
and the head learns on the final feature and all Z_l, each divided by its length. Nothing of the backbone is kept for
backward but LN1(X_l). B images, L blocks that have queries, T queries, N tokens, D width, F features.
"""

import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vistok.protocols import ReadoutOutput
from vistok.readouts._blocks import Kept, QueryBlock, masked_block, query_block
from vistok.readouts._captured import Captured
from vistok.readouts._combine import join_groups, layer_features
from vistok.readouts._feature_cache import FeatureCache, What, extract
from vistok.readouts._frozen_backbone import FrozenBackbone
from vistok.readouts._layers import chosen_blocks
from vistok.readouts._official_keys import is_official, split_official
from vistok.registry import register
from vistok.tokens import TokenSpec, TokenTensor
from vistok.weights import load_tensors

_READOUTS = ("concat", "mean", "wsum")
_MODES = ("auto", "folded", "kv", "qkv", "masked")


@register
class VQT(FrozenBackbone):
    """Query tokens on a backbone, which is not touched: hooks live for one forward, and state dicts leave it out."""

    cannot: frozenset[str] = frozenset({"fullgraph"})

    def __init__(
        self,
        vit: nn.Module | Mapping[str, Any],
        num_tokens: int = 1,
        *,
        query_dropout: float = 0.1,
        readout: Literal["concat", "mean", "wsum"] = "concat",
        normalize: bool = True,
        layers: Sequence[int] | None = None,
        include_final: bool = True,
        kv_mode: Literal["auto", "folded", "kv", "qkv", "masked"] = "auto",
        store_dtype: torch.dtype | str | None = None,
        embed_dropout: float = 0.0,
        backbone_grad: bool = False,
        exclude_prompts: bool = False,
    ) -> None:
        """vit: a timm VisionTransformer or an open_clip tower, or settings of one (`_backbones.build_backbone`).

        layers: block ids with queries (-1 is the last), None for all. include_final: the pooled feature as the first
        group. kv_mode: what is kept per block; "folded" is the normed input, half of "kv", the keys and values; "auto"
        folds where scores are linear in the tokens. store_dtype: of what is kept, less exact. embed_dropout: on the
        embedded tokens while training, as the authors' supervised runs had it; features then differ from the plain
        backbone's. backbone_grad: gradients run into the backbone, for tuners inside of it, and nothing freezes it.
        exclude_prompts: queries do not see the prompts of `vistok.layers.visual_prompts`.
        Raises: ValueError for settings out of range; UnsupportedBackboneError for a backbone without such blocks.
        """
        super().__init__(vit, backbone_grad=backbone_grad)
        self.name = "vqt"
        self.layers = chosen_blocks(self.name, layers, len(self.backbone.blocks))
        _check(num_tokens=num_tokens >= 1, readout=readout in _READOUTS, kv_mode=kv_mode in _MODES)
        _check(query_dropout=0 <= query_dropout < 1, embed_dropout=0 <= embed_dropout < 1)
        stored: Any = getattr(torch, store_dtype, None) if isinstance(store_dtype, str) else store_dtype
        floating = isinstance(stored, torch.dtype) and stored.is_floating_point
        _check(store_dtype=store_dtype is None or (floating and not backbone_grad))
        prompts = getattr(self.vit, "visual_prompts", None)
        _check(exclude_prompts=not exclude_prompts or prompts is not None)
        self.num_tokens, self.readout, self.kv_mode = num_tokens, readout, kv_mode
        self.query_dropout, self.embed_dropout = query_dropout, embed_dropout
        self.normalize, self.include_final = normalize, include_final
        self.store_dtype, self.exclude_prompts = stored, exclude_prompts
        for layer in self.layers:
            self._block(layer).settle(kv_mode)
        width = self.backbone.width
        self.bound = init_bound(self.backbone.patch, width)
        self.queries = nn.Parameter(self.like.new_empty(len(self.layers), num_tokens, width))
        nn.init.uniform_(self.queries, -self.bound, self.bound)
        if readout == "wsum":
            self.wsum = nn.Parameter(self.like.new_ones(len(self.layers), num_tokens))

    @property
    def groups(self) -> tuple[int, ...]:
        """Features per group: the final one if it is included, then each layer."""
        width = self.backbone.width * (self.num_tokens if self.readout == "concat" else 1)
        return (self.backbone.pooled_width,) * self.include_final + (width,) * len(self.layers)

    @property
    def num_features(self) -> int:
        """F."""
        return sum(self.groups)

    def forward(self, images: Tensor, *, skip: Collection[int] = ()) -> ReadoutOutput:
        """images [B, 3, H, W] as the backbone takes them -> features [B, F], pooled, queries [B, L, T, D], tokens.

        skip: groups that are not worked out; zeros stand for them. Raises: ValueError for a group that is not there.
        """
        return self.read(self.capture(images, skip=skip), skip=skip)

    def capture(
        self,
        images: Tensor,
        *,
        mode: Literal["folded", "kv", "qkv", "masked"] | None = None,
        skip: Collection[int] = (),
    ) -> Captured:
        """One forward of the backbone, without its graph unless `backbone_grad`; the queries play no part in it.

        mode: in place of `kv_mode`. Raises: as forward.
        """
        kept: list[Kept | None] = [None] * len(self.layers)
        with ExitStack() as hooks, torch.set_grad_enabled(self.backbone_grad and torch.is_grad_enabled()):
            if self.training and self.embed_dropout:
                hooks.callback(self.backbone.embedded.register_forward_hook(self._drop_embedding).remove)
            for place in self._active(skip):
                block = self._block(self.layers[place], mode)

                def keep(found: Kept, place: int = place) -> None:
                    kept[place] = self._stored(found)

                hooks.callback(block.watch(block.settle(mode or self.kv_mode), keep).remove)
            features, pooled = self.run_backbone(images)
        return Captured(pooled, features, tuple(kept), tuple(self.layers))

    def read(self, captured: Captured, *, skip: Collection[int] = ()) -> ReadoutOutput:
        """What the queries make of one forward of the backbone; the result as of `forward`.

        Raises: as forward; ValueError for what blocks of other `layers` left behind.
        """
        if captured.layers != tuple(self.layers):
            raise ValueError(
                f"{self.name}: expected what blocks {self.layers} left behind, got that of {list(captured.layers)}; "
                "capture or extract with the same layers"
            )
        active = set(self._active(skip))
        read: list[Tensor | None] = []
        for place, kept in enumerate(captured.kept):
            read.append(self._read_layer(place, kept, read) if place in active else None)
        features = self._features(captured.pooled.to(self.queries.dtype), read)
        empty = features.new_zeros(len(features), self.num_tokens, self.backbone.width)
        queries = torch.stack([empty if part is None else part for part in read], 1)
        return ReadoutOutput(features, captured.pooled, queries, captured.backbone_features)

    def tokens(self, images: Tensor) -> TokenTensor:
        """images as of `forward` -> embeds [B, L T, D], layer by layer; coords [B, L T, 2]: block id, number of query.

        As many tokens for images of any size: a connector to a language model.
        """
        found = self(images).queries
        batch, layers, count, width = found.shape
        ids = torch.tensor(self.layers, device=found.device)
        cells = torch.stack(torch.meshgrid(ids, torch.arange(count, device=found.device), indexing="ij"), -1)
        coords = cells.flatten(0, 1).int().expand(batch, -1, -1)
        spec = TokenSpec(self.name, width, grid=(layers, count), order="1d")
        return TokenTensor(spec, embeds=found.flatten(1, 2), coords=coords)

    def extract(
        self,
        loader: Iterable[Any],
        out: str | os.PathLike[str],
        what: What = "features",
        *,
        dtype: torch.dtype | None = None,
    ) -> FeatureCache:
        """Work out the features of a data set, or the keys and values that queries of any kind read, once for all.

        See `vistok.readouts._feature_cache.extract`.
        """
        return extract(self, loader, out, what, dtype)

    def rename_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The authors' names to ours, their head left out; a backbone that lies beside the queries goes into `vit`.

        Raises: ValueError if it does not fit.
        """
        if not is_official(tensors):
            return super().rename_keys(tensors)
        official = split_official(tensors)
        if official.backbone:
            # The authors' backbone ends behind its last norm; a classifier on top of ours is never asked.
            head = {name: value for name, value in self.vit.state_dict().items() if name.startswith("head.")}
            load_tensors(
                self.vit, {**head, **official.backbone}, f"the backbone of the checkpoint does not fit {self.name}"
            )
        return official.readout

    def _block(self, layer: int, mode: str | None = None) -> QueryBlock:
        block = self.backbone.blocks[layer]
        return masked_block(block) if (mode or self.kv_mode) == "masked" else query_block(block)

    def _active(self, skip: Collection[int]) -> list[int]:
        """Places in `layers` that are worked out."""
        first = int(self.include_final)
        wrong = [group for group in skip if not 0 <= group < first + len(self.layers)]
        if wrong:
            raise ValueError(f"{self.name}: expected groups of 0..{first + len(self.layers) - 1} to skip, got {wrong}")
        return [place for place in range(len(self.layers)) if place + first not in skip]

    def _read_layer(self, place: int, kept: Kept | None, before: Sequence[Tensor | None]) -> Tensor:
        if kept is None:
            raise ValueError(
                f"{self.name}: block {self.layers[place]} was skipped when this was captured; skip it here"
            )
        queries = self._ask(place, before)
        if self.training and self.query_dropout:
            # Spread over the batch first: each image has a mask of its own.
            queries = nn.functional.dropout(queries.expand(len(kept.tensors[0]), -1, -1), self.query_dropout)
        return self._block(self.layers[place], kept.mode).read(queries, kept)

    def _features(self, pooled: Tensor, read: Sequence[Tensor | None]) -> Tensor:
        """The feature vector [B, F] of the final feature [B, P] and what each layer's queries read [B, T, D]."""
        groups = layer_features(read, self.readout, self.wsum if self.readout == "wsum" else None)
        if self.include_final:
            groups.insert(0, pooled)
        if all(group is None for group in groups):
            raise ValueError(f"{self.name}: expected to skip fewer than all {len(groups)} groups")
        return join_groups(groups, self.groups, self.normalize)

    def _ask(self, place: int, before: Sequence[Tensor | None]) -> Tensor:
        """Queries [1 or B, T, D] of a layer; before: what those of the layers in front of it read [B, T, D]."""
        return self.queries[place][None]

    def _stored(self, kept: Kept) -> Kept:
        if self.exclude_prompts:
            prompts: Any = self.vit.visual_prompts
            axis = -2  # tokens, in all modes
            kept = kept.map(
                lambda x: torch.cat(
                    [x.narrow(axis, 0, prompts.start), x.narrow(axis, prompts.stop, x.shape[axis] - prompts.stop)], axis
                )
            )
        dtype = self.store_dtype
        return kept if dtype is None else kept.map(lambda x: x.to(dtype))

    def _drop_embedding(self, _module: nn.Module, _args: Any, tokens: Tensor) -> Tensor:
        return nn.functional.dropout(tokens, self.embed_dropout)


def init_bound(patch: tuple[int, int], width: int) -> float:
    """b = sqrt(6 / (3 patch_height patch_width + D)); queries start uniform in -b..b."""
    return math.sqrt(6 / (3 * patch[0] * patch[1] + width))


_EXPECTED = {
    "num_tokens": "at least 1",
    "readout": f"one of {', '.join(_READOUTS)}",
    "kv_mode": f"one of {', '.join(_MODES)}",
    "query_dropout": "0 <= query_dropout < 1",
    "embed_dropout": "0 <= embed_dropout < 1",
    "store_dtype": "a floating dtype, and none with backbone_grad, whose graph keeps everything anyway",
    "exclude_prompts": "a backbone with prompts of vistok.layers.visual_prompts",
}


def _check(**fine: bool) -> None:
    for name, holds in fine.items():
        if not holds:
            raise ValueError(f"vqt: {name}: expected {_EXPECTED[name]}")
