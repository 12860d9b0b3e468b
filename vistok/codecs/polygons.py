"""Outlines as Florence-2 (arXiv:2311.06242) writes them: label<poly><loc_x><loc_y>..<sep><loc_x><loc_y>..</poly>.

A thing may have several parts, each a polygon of at least three corners; `<sep>` stands between them and is the last
local code. N things, their token-tensor padded to the longest.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vistok.codecs import _labels as labelling
from vistok.codecs._bins import Bins
from vistok.codecs._coordinate_styles import LOC_LOOK
from vistok.codecs._item_ids import check_codes
from vistok.codecs._token_strings import POLYGON_BREAK, POLYGON_ENDS, florence_codes
from vistok.codecs._token_text import Scanner, Word
from vistok.protocols import ParseError, Span
from vistok.registry import register
from vistok.tokens import TokenSpec, TokenTensor

_CORNERS = 3


@register
class Polygons:
    """Things, each a list of polygons [corners, 2] in 0..1, x before y, to ids and back."""

    cannot: frozenset[str] = frozenset()
    num_tokens = None

    def __init__(self, *, bins: int = 1000) -> None:
        """bins: of a coordinate. Raises: ValueError for fewer than 2."""
        self.name, self.bins = "polygons", Bins(bins, "floor")
        self.codes = (*florence_codes(bins), POLYGON_BREAK)
        self._scanner = Scanner(self.codes, POLYGON_ENDS, rf"{LOC_LOOK}|</?poly>|<sep>")

    @property
    def strings(self) -> tuple[str, ...]:
        """Both markers, the bins, the break."""
        return (*POLYGON_ENDS, *self.codes)

    @property
    def spec(self) -> TokenSpec:
        """What all token-tensors of this codec share."""
        return TokenSpec(self.name, 0, (len(self.codes),), order="1d")

    def encode(self, values: Sequence[Sequence[Tensor]]) -> TokenTensor:
        """N things of polygons [corners, 2] -> tokens, as many as each thing needs.

        Raises: ValueError naming a thing without polygons, or a polygon that is not [3 or more, 2] in 0..1.
        """
        rows = [self._row(thing, place) for place, thing in enumerate(values)]
        return self._padded(rows)

    def decode(self, tokens: TokenTensor) -> list[list[Tensor]]:
        """Tokens -> things of polygons [corners, 2] float32. Raises: ValueError for codes that make no polygons."""
        things = []
        for row in self._rows(tokens):
            reason = self._flaw(row)
            if reason:
                raise ValueError(f"{self.name}: {reason}")
            parts = [self.bins.values(torch.tensor(part).view(-1, 2)) for part in self._parts(row)]
            things.append(parts)
        return things

    def to_text(self, tokens: TokenTensor, labels: Sequence[str] | None = None) -> list[str]:
        """One text for each thing, behind its label. Raises: ValueError for a label that would not be read back."""
        rows = self._rows(tokens)
        named = labelling.checked(self.name, labels, len(rows), "before")
        begin, end = POLYGON_ENDS
        return [
            label + begin + "".join(self.codes[code] for code in row) + end
            for label, row in zip(named, rows, strict=True)
        ]

    def parse(self, text: str) -> list[Span | ParseError]:
        """Every thing between the markers with its label, and why others are none."""
        found: list[Span | ParseError] = []
        words, place, last = self._scanner.words(text), 0, 0
        while place < len(words):
            stop = place + 1
            if words[place].text == POLYGON_ENDS[0]:
                while stop < len(words) and words[stop].code != -1 and self._follow(text, words, stop):
                    stop += 1
                if stop < len(words) and words[stop].text == POLYGON_ENDS[1] and self._follow(text, words, stop):
                    stop += 1
            else:
                while stop < len(words) and words[stop].text != POLYGON_ENDS[0]:
                    stop += 1
            found.append(self._read(text, words[place:stop], last))
            place, last = stop, words[stop - 1].stop
        return found

    def tokens(self, spans: Sequence[Span]) -> TokenTensor:
        """Spans of `parse` as tokens. Raises: ValueError for codes that make no polygons."""
        for span in spans:
            reason = self._flaw(list(span.codes))
            if reason:
                raise ValueError(f"{self.name}: {reason}")
        return self._padded([list(span.codes) for span in spans])

    def _read(self, text: str, words: list[Word], begin: int) -> Span | ParseError:
        start, stop = words[0].start, words[-1].stop
        if words[0].text != POLYGON_ENDS[0] or words[-1].text != POLYGON_ENDS[1]:
            return ParseError(f"expected polygons between {' and '.join(POLYGON_ENDS)}", start, stop)
        codes = [word.code for word in words[1:-1]]
        reason = self._flaw(codes)
        return (
            ParseError(reason, start, stop)
            if reason
            else Span(tuple(codes), start, stop, labelling.before(text, begin, start))
        )

    @staticmethod
    def _follow(text: str, words: Sequence[Word], place: int) -> bool:
        return not text[words[place - 1].stop : words[place].start].strip()

    def _flaw(self, codes: list[int]) -> str:
        if not all(0 <= code < len(self.codes) for code in codes):
            return f"expected {self.codes[0]} .. {self.codes[-2]} and {POLYGON_BREAK}, got another token"
        for part in self._parts(codes):
            if len(part) % 2 or len(part) < 2 * _CORNERS:
                return f"expected polygons of {_CORNERS} or more pairs x y, got one of {len(part)} coordinates"
        return ""

    def _parts(self, codes: Sequence[int]) -> list[list[int]]:
        parts: list[list[int]] = [[]]
        for code in codes:
            if code == self.bins.count:
                parts.append([])
            else:
                parts[-1].append(code)
        return parts

    def _row(self, thing: Sequence[Tensor], place: int) -> list[int]:
        if not len(thing):
            raise ValueError(f"{self.name}: expected at least one polygon of thing {place}, got none")
        row: list[int] = []
        for polygon in thing:
            if polygon.ndim != 2 or polygon.shape[1] != 2 or len(polygon) < _CORNERS or not polygon.isfinite().all():
                raise ValueError(
                    f"{self.name}: expected finite polygons [3 or more, 2], got {list(polygon.shape)} in thing {place}"
                )
            row += [*([self.bins.count] if row else []), *self.bins.of(polygon).flatten().tolist()]
        return row

    def _padded(self, rows: list[list[int]]) -> TokenTensor:
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        ids = torch.zeros(len(rows), max(map(len, rows), default=0), dtype=torch.int64)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
        return TokenTensor(spec=self.spec, indices=ids, lengths=lengths)

    def _rows(self, tokens: TokenTensor) -> list[list[int]]:
        if tokens.indices is None or tokens.indices.ndim != 2:
            raise ValueError(f"{self.name}: expected indices [N, tokens], got {tokens!r}")
        check_codes(self.name, tokens.indices[tokens.mask], len(self.codes))
        lengths: list[int] = tokens.valid_lengths.tolist()
        return [row[:length].tolist() for row, length in zip(tokens.indices, lengths, strict=True)]
