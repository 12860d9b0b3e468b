"""What codecs of boxes, points and quadrilaterals share: a fixed number of coordinates for each item, one token each.

N items, M coordinates of each; all in 0..1, parts of the sides of the image, or of the square that a `BoxFrame` makes
of it.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from vistok.codecs import _labels as labelling
from vistok.codecs._bins import Bins
from vistok.codecs._coordinate_styles import style_of
from vistok.codecs._item_ids import check_codes, ids_of_spans, item_ids
from vistok.codecs._token_text import Scanner, Word, runs
from vistok.protocols import ParseError, Span
from vistok.tokens import TokenSpec, TokenTensor


class CoordinateCodec:
    """A codec says which shape its items have and which of them are none."""

    cannot: frozenset[str] = frozenset()
    shape: tuple[int, ...]

    def __init__(self, name: str, style: str, bins: int | None, rounding: str | None) -> None:
        """style: of `STYLES`; bins, rounding: other numbers of bins and rules than the style's.

        Raises: ValueError for an unknown style or rule.
        """
        self.name, self.style = name, style_of(style)
        self.bins = Bins(self.style.bins if bins is None else bins, rounding or self.style.rule)
        self.codes = self.style.codes(self.bins.count)
        self._scanner = Scanner(self.codes, (), self.style.look)

    @property
    def strings(self) -> tuple[str, ...]:
        """All tokens, which are all codes."""
        return self.codes

    @property
    def num_tokens(self) -> int:
        """M."""
        return torch.Size(self.shape).numel()

    @property
    def spec(self) -> TokenSpec:
        """What all token-tensors of this codec share."""
        return TokenSpec(self.name, 0, (len(self.codes),), order="1d")

    @abstractmethod
    def check(self, values: Tensor) -> None:
        """Raise ValueError naming the first of values [N, *shape], x before y, that is no such item."""

    @abstractmethod
    def flaw(self, bins: Sequence[int]) -> str:
        """Why M bins in the order of the text are no item, "" if they are one."""

    def encode(self, values: Tensor) -> TokenTensor:
        """values [N, *shape] float in 0..1, x before y -> tokens [N, M].

        Raises: ValueError naming a wrong shape, a value that is not finite or outside 0..1, or an item that is none.
        """
        if values.ndim != len(self.shape) + 1 or tuple(values.shape[1:]) != self.shape:
            raise ValueError(f"{self.name}: expected [N, {', '.join(map(str, self.shape))}], got {list(values.shape)}")
        if not values.is_floating_point() or not bool(values.isfinite().all()):
            raise ValueError(f"{self.name}: expected finite floats in 0..1, got {values.dtype} or NaN or infinity")
        self.check(values)
        return TokenTensor(spec=self.spec, indices=self._swapped(self.bins.of(values).flatten(1)))

    def decode(self, tokens: TokenTensor) -> Tensor:
        """Tokens [N, M] -> values [N, *shape] float32 in 0..1, x before y. Raises: ValueError for ids that are none."""
        flat = self.bins.values(self._swapped(self._ids(tokens)))
        return flat.reshape(len(flat), *self.shape)

    def to_text(self, tokens: TokenTensor, labels: Sequence[str] | None = None) -> list[str]:
        """One text for each item, with its label where the style has a place for it. Raises: ValueError for a label
        that would not be read back."""
        style, rows = self.style, self._ids(tokens).tolist()
        named = labelling.checked(self.name, labels, len(rows), style.label)
        texts = [style.before + style.between.join(self.codes[code] for code in row) + style.after for row in rows]
        if style.label == "before":
            return [label + text for label, text in zip(named, texts, strict=True)]
        return [f"{text} {label}".rstrip() for label, text in zip(named, texts, strict=True)]

    def joined(self, tokens: TokenTensor, labels: Sequence[str] | None = None) -> str:
        """All items in one text, as the style's model writes several."""
        return self.style.joint.join(self.to_text(tokens, labels))

    def parse(self, text: str) -> list[Span | ParseError]:
        """Every item in a text with its label, and why tokens that are none are none."""
        found: list[Span | ParseError] = []
        groups = runs(text, self._scanner.words(text), self.style.between)
        for place, group in enumerate(groups):
            begin = groups[place - 1][-1].stop if place else 0
            limit = groups[place + 1][0].start if place + 1 < len(groups) else len(text)
            found += self._read(text, group, begin, limit)
        return found

    def tokens(self, spans: Sequence[Span]) -> TokenTensor:
        """Spans of `parse` as tokens. Raises: ValueError for spans of another length or with codes that are none."""
        ids = ids_of_spans(self.name, spans, self.num_tokens)
        check_codes(self.name, ids, len(self.codes))
        return TokenTensor(spec=self.spec, indices=ids)

    def _read(self, text: str, group: list[Word], begin: int, limit: int) -> list[Span | ParseError]:
        """Items of one run of tokens between places `begin` and `limit` of the text."""
        style, count = self.style, self.num_tokens
        start, stop = group[0].start, group[-1].stop
        unknown = next((word for word in group if word.code < 0), None)
        if unknown is not None:
            return [ParseError(f"expected one of {len(self.codes)} tokens, got {unknown.text[:24]!r}", start, stop)]
        if len(group) % count or (len(group) != count and not style.repeats):
            return [ParseError(f"expected {count} tokens in a row, got {len(group)}", start, stop)]
        if style.before:
            head, tail = text[begin:start].rstrip(), text[stop:limit].lstrip()
            if not head.endswith(style.before) or not tail.startswith(style.after):
                return [ParseError(f"expected {style.before} and {style.after} around the tokens", start, stop)]
            start, stop = begin + len(head) - len(style.before), stop + text[stop:limit].index(style.after) + 1
        label = ""
        if style.label:
            label = (
                labelling.after(text, stop, limit) if style.label == "after" else (labelling.before(text, begin, start))
            )
        found: list[Span | ParseError] = []
        for first in range(0, len(group), count):
            item = group[first : first + count]
            codes = tuple(word.code for word in item)
            place = (start, stop) if len(group) == count else (item[0].start, item[-1].stop)
            reason = self.flaw(codes)
            found.append(ParseError(reason, *place) if reason else Span(codes, *place, label))
        return found

    def _swapped(self, coordinates: Tensor) -> Tensor:
        """[N, M] x before y <-> in the order of the text."""
        if not self.style.y_first:
            return coordinates
        return coordinates.reshape(len(coordinates), self.num_tokens // 2, 2).flip(-1).flatten(1)

    def _ids(self, tokens: TokenTensor) -> Tensor:
        return item_ids(self.name, tokens, self.num_tokens, len(self.codes))
