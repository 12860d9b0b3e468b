"""What a method must offer to be a tokenizer, quantizer, pruner, merger, readout or codec: shapes, no code."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol, Self, runtime_checkable

from torch import Tensor

from vistok.tokens import Assignment, Selection, TokenSpec, TokenTensor

Budget = int | float | Tensor


class Quantized(NamedTuple):
    """What every quantizer returns.

    embeds [..., D] quantized vectors (gradients pass through), indices [...] or [..., Q] int64 (-1 where masked),
    loss [] float32 weighted sum to add to the training loss, stats: raw loss terms and counts by name.
    """

    embeds: Tensor
    indices: Tensor
    loss: Tensor
    stats: dict[str, Tensor]


@runtime_checkable
class Tokenizer(Protocol):
    """Images to tokens and back. `cannot` names what a method does not do ("decode", "fullgraph", "backward")."""

    cannot: frozenset[str]

    @property
    def spec(self) -> TokenSpec: ...

    def encode(self, images: Tensor, *, budget: int | Tensor | None = None, **options: Any) -> TokenTensor:
        """images [B, C, H, W] in [0, 1] -> tokens."""
        ...

    def decode(self, tokens: TokenTensor) -> Tensor:
        """Tokens -> images [B, C, H, W] in [0, 1]; NotImplementedError if the method has no decoder."""
        ...


@runtime_checkable
class Quantizer(Protocol):
    """Vectors to codebook entries: `dim` wide, one id per codebook."""

    cannot: frozenset[str]
    dim: int

    @property
    def codebook_sizes(self) -> tuple[int, ...]: ...

    def __call__(self, z: Tensor, mask: Tensor | None = None) -> Quantized:
        """z [..., D], mask [...] bool or None."""
        ...

    def lookup(self, indices: Tensor) -> Tensor:
        """indices [...] or [..., Q] int64 -> embeds [..., D]."""
        ...


@runtime_checkable
class Pruner(Protocol):
    """Chooses tokens. `needs` names the context it takes; a host hands over what it can find out.

    "attention" [B, N]: what the vision tower's class token attends to, mean over heads; without one, what tokens
    receive on average. "thumbnail" [B, N] bool: the view of the whole image, where it is cut into crops too.
    "tower_keys" [B, N, Dk]: keys of the tower's attention, mean over heads. "class_token" [B, 1, D]: the tower's, in
    the space of the tokens. "instruction_attention" [B, N]: of the decoder's first layer. "text" [B, T, D],
    "text_mask" [B, T] bool: the instruction in the space of the tokens. "frames" [B, N] int64: the frame of each token
    of a video, 0 for an image, -1 for what belongs to none. "generator": for those who draw.

    A pruner may say more of what it takes, as attributes: `tower_layer` (int, -1 if not given), of which layer of the
    tower attention and keys are; `space` ("projected" if not given; "tower": tokens as the projector gets them, and
    what `reduce` returns goes through it); `proportional` (whether merged tokens weigh log(size) in the decoder).
    """

    cannot: frozenset[str]
    needs: frozenset[str]

    def select(self, tokens: TokenTensor, budget: Budget, **context: Any) -> Selection: ...


@runtime_checkable
class TowerMerger(Protocol):
    """A pruner that merges tokens between attention and MLP of the vision tower's blocks, if `merges_in_tower`."""

    merges_in_tower: bool

    def blocks(self, tokens: int, blocks: int, budget: Budget) -> list[int]:
        """How many of an image's tokens each block merges. Raises: ValueError for a budget out of reach."""
        ...

    def targets(self, pairs: Assignment) -> Tensor:
        """The token [B, S] int64 at whose place each slot of `vistok.ops.bipartite_match` stands."""
        ...


class Transition(NamedTuple):
    """What the two modules of one decoder layer did: each [B, n, D]; in = after its norm, out = before the residual."""

    attention_in: Tensor
    attention_out: Tensor
    ffn_in: Tensor
    ffn_out: Tensor


class LayerAttention(Protocol):
    """Softmax attention of one decoder layer at the current tokens, worked out for the rows that are asked for only."""

    def __call__(self, rows: Tensor) -> Tensor:
        """rows [B, n] bool -> [B, n] float32: mean over heads and rows of the softmax over all keys a row may see."""
        ...

    def keys(self) -> Tensor:
        """[B, G, n, Dh]: keys with their rotation, G key heads."""
        ...


@dataclass(frozen=True)
class LayerPlan:
    """Where in a decoder a pruner looks and cuts.

    A layer is a 0-based index (int) or a relative depth (float in (0, 1]): the last of the first floor(depth * layers).
    observe: layers whose `Transition` it takes. prune_after: layers behind whose output it may cut. needs: what a cut
    takes: "attention" (rows of the layer just run), "next_attention" (rows of the layer to come).
    positions: "keep" the rotary positions of what is left, or "reindex" them to 0..n'-1 where there is one axis.
    """

    observe: tuple[int | float, ...] = ()
    prune_after: tuple[int | float, ...] = ()
    needs: frozenset[str] = frozenset()
    positions: Literal["keep", "reindex"] = "keep"

    def resolve(self, layers: int) -> Self:
        """The same plan in indices of a decoder of that many layers, ascending, each once.

        Raises: ValueError naming a layer that is not there, or that has none behind it to cut for.
        """
        last = layers - 1
        observe = sorted({_layer_index(layer, layers, last) for layer in self.observe})
        cuts = sorted({_layer_index(layer, layers, last - 1) for layer in self.prune_after})
        return replace(self, observe=tuple(observe), prune_after=tuple(cuts))


def _layer_index(layer: int | float, layers: int, last: int) -> int:
    if isinstance(layer, float) and 0 < layer <= 1:
        # 1e-9: 7 / 32 * 32 and the like must not fall below the whole number that they are.
        index = max(0, int(layer * layers + 1e-9) - 1)
    elif isinstance(layer, int) and not isinstance(layer, bool):
        index = layer
    else:
        raise ValueError(f"layer: expected a 0-based index or a relative depth in (0, 1], got {layer!r}")
    if not 0 <= index <= last:
        raise ValueError(
            f"layer {layer!r}: expected one of 0..{last} in a decoder of {layers} layers; give a relative depth "
            f"in (0, 1] that falls into it"
        )
    return index


@dataclass(frozen=True, eq=False)
class LayerView:
    """The n tokens that are alive behind one decoder layer, during the prefill of B prompts.

    layer: the layer just run (-1: none yet, `hidden` is the decoder's input), of `layers`. hidden [B, n, D].
    visual, system (before the first visual token), text (non-visual, behind the first visual one), instruction
    (behind the last visual one of the prompt), valid (neither padding nor masked): [B, n] bool. source [B, n] int64:
    place in the decoder's input. image_ids [B, n] int64: image within its item, -1 for other tokens. slots [B, V]
    int64: where the visual tokens lie, ascending, the first counts[b] of a row. counts, original [B] int64: visual
    tokens now and at the decoder's input. transition: of this layer, where the plan observes it. attention,
    next_attention: where the plan needs them.
    """

    layer: int
    layers: int
    hidden: Tensor
    visual: Tensor
    system: Tensor
    text: Tensor
    instruction: Tensor
    valid: Tensor
    source: Tensor
    image_ids: Tensor
    slots: Tensor
    counts: Tensor
    original: Tensor
    transition: Transition | None = None
    attention: LayerAttention | None = None
    next_attention: LayerAttention | None = None


class LayerCut(NamedTuple):
    """What to keep of the visual tokens: index [B, K] int64, ascending places in `LayerView.slots`.

    lengths [B]: the first lengths[b] of a row count, None = all K; rows of different lengths are padded by masked
    tokens, so that items do not depend on each other. K = 0 drops all. scores [B, V] float32.
    embeds [B, K, D]: what takes the place of the kept hidden states, where tokens were merged.
    """

    index: Tensor  # type: ignore[assignment]
    lengths: Tensor | None = None
    scores: Tensor | None = None
    embeds: Tensor | None = None


class LayerRun(Protocol):
    """One prefill of one batch: what a layer pruner remembers between layers lives here and nowhere else."""

    def observe(self, view: LayerView) -> None:
        """Called behind every layer of the plan's `observe`, before any cut there; `view.transition` is set."""
        ...

    def prune(self, view: LayerView) -> LayerCut | None:
        """Called behind every layer of the plan's `prune_after`; None keeps everything."""
        ...


@runtime_checkable
class LayerPruner(Protocol):
    """Cuts visual tokens between decoder layers. An object may be a `Pruner` for the decoder's input as well."""

    cannot: frozenset[str]
    plan: LayerPlan

    def begin(self, view: LayerView, budget: Budget | None = None) -> LayerRun:
        """Start on the decoder's input.

        budget: visual tokens per layer, on average over all layers, as a count or as a fraction of the prompt's; None
        is the method's own schedule. Raises: ValueError if the method cannot reach it.
        """
        ...


@runtime_checkable
class Merger(Protocol):
    """Assigns tokens to fewer slots; `tokens.merge(assignment)` averages them."""

    cannot: frozenset[str]
    needs: frozenset[str]

    def assign(self, tokens: TokenTensor, budget: Budget, **context: Any) -> Assignment: ...


class ReadoutOutput(NamedTuple):
    """What every readout returns for B images.

    features [B, F] what a head learns on; pooled [B, P] the backbone's own final feature; queries [B, L, T, D] what T
    query tokens read in each of L layers (L = 0 for a readout without queries); backbone_features [B, N, D] the tokens
    behind the last block.
    """

    features: Tensor
    pooled: Tensor
    queries: Tensor
    backbone_features: Tensor


@runtime_checkable
class Readout(Protocol):
    """Images through a frozen backbone to features of fixed size, and to a fixed number of tokens.

    `groups`: how many features each part gives, in the order of `ReadoutOutput.features`; their sum is F.
    """

    cannot: frozenset[str]

    @property
    def groups(self) -> tuple[int, ...]: ...

    def __call__(self, images: Tensor) -> ReadoutOutput:
        """images [B, 3, H, W] as the backbone takes them, normalised."""
        ...

    def tokens(self, images: Tensor) -> TokenTensor:
        """The same images -> tokens of the backbone's width, as many for each image, for a language model."""
        ...


@dataclass(frozen=True)
class Span:
    """Perception tokens that stand in a text at characters start..stop (exclusive), as local codes of their codec.

    label: the name that the text gives them, "" if none.
    """

    codes: tuple[int, ...]
    start: int
    stop: int
    label: str = ""


@dataclass(frozen=True)
class ParseError:
    """Why characters start..stop of a text, which hold tokens of a codec, are nothing that it can decode."""

    reason: str
    start: int
    stop: int


@runtime_checkable
class Codec(Protocol):
    """What was perceived (maps, boxes ..) to tokens of a language model's text and back.

    The k-th of `codes` is local code k, and a token-tensor's ids are local codes, one item for each thing perceived.
    strings: all that a vocabulary needs, in order, codes and markers. num_tokens: ids of an item, None if that varies.
    `cannot` names what a codec does not do.
    """

    cannot: frozenset[str]
    name: str

    @property
    def strings(self) -> tuple[str, ...]: ...

    @property
    def codes(self) -> tuple[str, ...]: ...

    @property
    def num_tokens(self) -> int | None: ...

    @property
    def spec(self) -> TokenSpec: ...

    def encode(self, values: Any) -> TokenTensor:
        """What was perceived, N of it -> tokens [N, num_tokens]."""
        ...

    def decode(self, tokens: TokenTensor) -> Any:
        """Tokens -> what `encode` takes, as near as the codes can say it."""
        ...

    def to_text(self, tokens: TokenTensor, labels: Sequence[str] | None = None) -> list[str]:
        """One text for each item, markers included; labels: names of the items, where the codec's text has a place."""
        ...

    def parse(self, text: str) -> list[Span | ParseError]:
        """Everything in a text that is, or resembles, tokens of this codec, in order; it raises for no string."""
        ...

    def tokens(self, spans: Sequence[Span]) -> TokenTensor:
        """Spans of `parse` as items of one token-tensor. Raises: ValueError for codes that are none of an item."""
        ...
