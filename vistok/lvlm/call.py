"""One prompt on its way through a decoder that loses tokens: what is alive behind each layer. B items, n tokens."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vistok.lvlm.masks import decode_mask, prefill_mask, with_key_bias
from vistok.lvlm.positions import moved_up
from vistok.lvlm.prompt import Prompt
from vistok.protocols import Budget, LayerCut, LayerPruner, LayerRun, LayerView
from vistok.rows import take_rows

Rotary = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Segment:
    """Layers between two cuts. index [B, n'] int64: places in the decoder's input; None: all of them.

    dead [B, n'] bool: tokens that stand in for dropped ones, None: none. kept [B, n] bool: over the decoder's input.
    arguments: what the layers are called with during the prefill.
    """

    visual: Tensor
    index: Tensor | None = None
    dead: Tensor | None = None
    kept: Tensor | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Stage:
    """One layer pruner at work. observe, prune_after: its layers. seconds, flops: what choosing has cost."""

    pruner: LayerPruner
    budget: Budget | None
    observe: frozenset[int]
    prune_after: frozenset[int]
    needs: frozenset[str]
    run: LayerRun | None = None
    seconds: float = 0.0
    flops: int = 0


@dataclass(eq=False)
class Call:
    """State of one prefill and of the decoding that continues it.

    width: tokens at the decoder's input; total: tokens of the prompt as given. index, dead [B, width]: what the input
    stage left of it, or None; dropped [B, 1]: how many it took, full_visual: visual tokens per item before it; deltas
    [B, 1]: what mRoPE adds to later text. key_bias [B, width]: added to the attention on each token, log(size) of
    merged ones, None: nothing. segments, of_layer: the segment of every layer so far. past: tokens in the cache before
    this forward, 0 during the prefill. labels: cut with the tokens behind the last layer.
    """

    prompt: Prompt
    stages: list[Stage]
    rotary: Rotary
    attention: str
    positions: str
    total: int
    index: Tensor | None = None
    dead: Tensor | None = None
    deltas: Tensor | None = None
    dropped: Tensor | None = None
    labels: Tensor | None = None
    key_bias: Tensor | None = None
    past: int = 0
    segments: list[Segment] = field(default_factory=list)
    of_layer: list[int] = field(default_factory=list)
    base: dict[str, Any] = field(default_factory=dict)
    step: dict[int, dict[str, Any]] = field(default_factory=dict)
    input_seconds: float = 0.0
    full_visual: float | None = None

    @property
    def width(self) -> int:
        """Tokens per item at the decoder's input."""
        return self.prompt.valid.shape[1]

    def start(self, arguments: Mapping[str, Any], hidden: Tensor) -> None:
        """Take the arguments of the first layer: mask and rotation of the whole prompt."""
        self.base, changed = dict(arguments), {}
        if self.key_bias is not None:
            changed["attention_mask"] = with_key_bias(self.base.get("attention_mask"), self.key_bias, hidden)
            self.base |= changed
        self.segments, self.of_layer = [Segment(self.prompt.visual, arguments=changed)], []

    def view(self, layer: int, layers: int, hidden: Tensor) -> LayerView:
        """What a pruner sees of the tokens that are alive now."""
        now, prompt = self.segments[-1], self.prompt
        fields: dict[str, Any] = {
            "visual": prompt.visual,
            "system": prompt.system,
            "text": prompt.text,
            "instruction": prompt.instruction,
            "valid": prompt.valid,
            "source": torch.arange(self.width, device=prompt.valid.device).expand_as(prompt.valid),
            "image_ids": prompt.image_ids,
        }
        original = prompt.visual.sum(1)
        if now.index is not None:
            fields = {name: value.gather(1, now.index) for name, value in fields.items()}
        if now.dead is not None:
            for name in ("visual", "system", "text", "instruction", "valid"):
                fields[name] = fields[name] & ~now.dead
            fields["image_ids"] = fields["image_ids"].masked_fill(now.dead, -1)
        counts = fields["visual"].sum(1)
        order = fields["visual"].to(torch.int8).sort(dim=1, descending=True, stable=True).indices
        slots = order[:, : int(counts.max())]
        return LayerView(layer, layers, hidden.detach(), slots=slots, counts=counts, original=original, **fields)

    def cut(self, view: LayerView, cut: LayerCut, hidden: Tensor) -> Tensor:
        """Open a new segment and return its hidden states [B, n', D].

        Raises: ValueError if the cut does not fit the view.
        """
        chosen, places = _chosen(view, cut)
        if cut.embeds is not None:
            hidden = hidden.index_put((chosen.nonzero()[:, 0], places[chosen]), cut.embeds[chosen].to(hidden.dtype))
        now = self.segments[-1]
        kept = ~view.visual if now.dead is None else ~view.visual & ~now.dead
        kept[chosen.nonzero()[:, 0], places[chosen]] = True
        if bool(kept.all()):
            return hidden
        width = int(kept.sum(1).max())
        # The shorter items are filled up with tokens that they have dropped; order stays.
        index = kept.to(torch.int8).sort(dim=1, descending=True, stable=True).indices[:, :width].sort(dim=1).values
        dead = ~kept.gather(1, index)
        self._open(index if now.index is None else now.index.gather(1, index), dead if bool(dead.any()) else None)
        hidden = take_rows(hidden, index)
        self._bring_arguments(hidden)
        return hidden

    def _open(self, index: Tensor, dead: Tensor | None) -> None:
        alive = torch.ones_like(index, dtype=torch.bool) if dead is None else ~dead
        kept = torch.zeros_like(self.prompt.valid).scatter(1, index, alive)
        self.segments.append(Segment(self.prompt.visual.gather(1, index) & alive, index, dead, kept))

    def _bring_arguments(self, hidden: Tensor) -> None:
        now = self.segments[-1]
        assert now.index is not None and now.kept is not None
        mask = prefill_mask(self.base.get("attention_mask"), now.index, now.dead, hidden, self.attention)
        if self.positions == "reindex":
            positions = self.base["position_ids"].expand(len(now.index), -1)
            moved = moved_up(positions, now.kept).gather(1, now.index)
            rotation = self.rotary(hidden, position_ids=moved)
        else:
            cos, sin = self.base["position_embeddings"]
            cos, sin = (take_rows(part.expand(len(now.index), -1, -1), now.index) for part in (cos, sin))
            rotation = (cos, sin)
        # Positions with gaps would read as several packed sequences on the way to flash attention.
        arguments = {"attention_mask": mask, "position_embeddings": rotation, "position_ids": None}
        self.segments[-1] = replace(now, arguments=arguments)

    def decode_arguments(self, layer: int, hidden: Tensor, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What to change in the arguments of a layer that runs over the cache; worked out once per segment."""
        number = self.of_layer[layer]
        now = self.segments[number]
        if now.index is None and self.key_bias is None:
            return {}
        if number not in self.step:
            mask, bias, changed = arguments.get("attention_mask"), self.key_bias, dict[str, Any]()
            if now.index is not None:
                mask = decode_mask(mask, now.index, now.dead, self.width, self.past, hidden, self.attention)
                changed["position_ids"] = None
                bias = None if bias is None else bias.gather(1, now.index)
            if bias is not None:
                later = self.past - self.width + hidden.shape[1]
                mask = with_key_bias(mask, torch.nn.functional.pad(bias, (0, later)), hidden)
            changed["attention_mask"] = mask
            if self.positions == "reindex" and now.kept is not None:
                shift = (~now.kept).sum(1, keepdim=True)
                positions = arguments["position_ids"].expand(len(shift), -1) - shift
                changed["position_embeddings"] = self.rotary(hidden, position_ids=positions)
            self.step[number] = changed
        return self.step[number]

    def finish(self) -> None:
        """Cut the labels as the tokens were cut, and let go of what only the prefill needs."""
        now = self.segments[-1]
        if self.labels is not None and now.index is not None:
            labels = self.labels.gather(1, now.index)
            # In place: the model's forward holds this tensor and works out the loss from it.
            self.labels.set_(labels if now.dead is None else labels.masked_fill(now.dead, -100))  # type: ignore[call-overload]
        self.base, self.labels = {}, None
        self.segments = [replace(segment, arguments={}) for segment in self.segments]


def _chosen(view: LayerView, cut: LayerCut) -> tuple[Tensor, Tensor]:
    """[B, K] bool, which entries of the cut count; [B, K] int64, where they lie among the current tokens."""
    index, slots = cut.index, view.slots
    if index.dtype != torch.int64 or index.ndim != 2 or len(index) != len(slots):
        raise ValueError(
            f"LayerCut.index: expected int64 [{len(slots)}, K], got {index.dtype} {list(index.shape)} behind layer "
            f"{view.layer}"
        )
    steps = torch.arange(index.shape[1], device=index.device)
    lengths = view.counts.clamp(max=index.shape[1]) if cut.lengths is None else cut.lengths
    chosen = steps < lengths[:, None]
    if bool((chosen & ((index < 0) | (index >= view.counts[:, None]))).any()):
        raise ValueError(f"LayerCut.index: expected places below the visual tokens {view.counts.tolist()} of each item")
    return chosen, slots.gather(1, index.clamp(0, max(slots.shape[1] - 1, 0))) if slots.shape[1] else index
