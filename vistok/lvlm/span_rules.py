"""What a perception span looks like in ids, place by place: AURORA's depth maps and boxes, PaliGemma's boxes and masks.

`PerceptionGrammar` holds a language model to these rules. Formats: AURORA (arXiv:2412.03548, section 3 and its code),
PaliGemma (arXiv:2407.07726). K codes of a family.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vistok.lvlm.vocabulary import TokenFamily, VocabMap

AURORA_BOX = "({},{},{},{})"
DEPTH_CODES = 100
MASK_CODES = 16
_BEFORE = ("", "a", "a ", ": ", ":")  # what may stand in front of a box, since a tokenizer joins words to their left
_ORDERED = ((0, 2), (1, 3))  # the second corner of a box is not before the first, on either axis


@dataclass(frozen=True)
class SpanRule:
    """One kind of span. steps: for each of its places the ids that may stand there.

    openers: ids of which one must stand in front, none if the span may begin anywhere. own: ids that stand nowhere but
    in such spans. ordered: pairs of places; the code at the second is at least `gap` above that at the first.
    optional: how many of the last places may be left out, all of them together. max_spans: how many there may be.
    """

    name: str
    steps: tuple[tuple[int, ...], ...]
    own: frozenset[int]
    openers: tuple[int, ...] = ()
    ordered: tuple[tuple[int, int], ...] = ()
    gap: int = 0
    optional: int = 0
    max_spans: int | None = None

    def __post_init__(self) -> None:
        if self.max_spans is not None and self.max_spans < 1:
            raise ValueError(f"{self.name}: expected max_spans >= 1 or None, got {self.max_spans}; leave the rule out")
        if not self.steps or not all(self.steps) or not 0 <= self.optional < len(self.steps):
            raise ValueError(
                f"{self.name}: expected places with at least one id each, of which fewer than all are optional, got "
                f"{len(self.steps)} places and optional={self.optional}"
            )
        if any(self.gap >= len(self.steps[first]) for first, _ in self.ordered) or self.gap < 0:
            raise ValueError(f"{self.name}: expected 0 <= gap < the number of codes, got {self.gap}")

    @cached_property
    def ranks(self) -> dict[int, dict[int, int]]:
        """Local code of every id, for the places that are ordered."""
        places = {place for pair in self.ordered for place in pair}
        return {place: {number: code for code, number in enumerate(self.steps[place])} for place in places}

    def allowed(self, place: int, earlier: Sequence[int]) -> tuple[int, ...]:
        """Ids that may stand at `place` behind the ids `earlier` of this span."""
        ids = self.steps[place]
        for first, second in self.ordered:
            if place == first and self.gap:
                ids = ids[: len(ids) - self.gap]
            elif place == second:
                ids = ids[self.ranks[first][earlier[first]] + self.gap :]
        return ids


def depth_rule(codes: VocabMap, count: int = DEPTH_CODES, *, max_spans: int | None = 1) -> SpanRule:
    """START, exactly `count` codes, END; at most `max_spans` such spans.

    Raises: ValueError if the family has no markers or count is below 1.
    """
    if count < 1 or not codes.begin or not codes.end:
        raise ValueError(
            f"{codes.name}: expected count >= 1 and a family with markers around its codes, got count={count}, "
            f"begin {list(codes.begin)} and end {list(codes.end)}"
        )
    steps = (*((marker,) for marker in codes.begin), *(tuple(codes.codes),) * count, *((m,) for m in codes.end))
    return SpanRule(codes.name, steps, frozenset((*codes.begin, *codes.codes, *codes.end)), max_spans=max_spans)


def box_rule(
    tokenizer: Any,
    family: TokenFamily,
    template: str = AURORA_BOX,
    *,
    gap: int = 0,
    max_spans: int | None = None,
) -> SpanRule:
    """Four codes x1, y1, x2, y2 in a template, `(P,P,P,P)` in AURORA, with x2 >= x1 + gap and y2 >= y1 + gap.

    What stands between the codes is whatever the tokenizer makes of it; of what stands before the first only the last
    token is asked for. Raises: ValueError if the template has not four places, or holds what the tokenizer does not
    know, or the tokenizer lacks the family.
    """
    if template.count("{}") != 4:
        raise ValueError(f"{family.name}: expected a template with four places {{}}, got {template!r}")
    codes = VocabMap.of(tokenizer, family)
    read = [_pieces(tokenizer, codes, before + template.format(*family.codes[:1] * 4)) for before in _BEFORE]
    # The same template between the codes and behind them, whatever stands before it.
    _, *between, behind = read[0]
    for mark in (*between, behind):
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in mark:
            raise ValueError(
                f"{family.name}: expected a template of tokens that the tokenizer knows, got {template!r}, of which it "
                "reads a part as unknown; attach a family with its punctuation, or use '{}{}{}{}'"
            )
    steps: list[tuple[int, ...]] = []
    places = []
    for marks in (*between, behind):
        places.append(len(steps))
        steps += [tuple(codes.codes), *((mark,) for mark in marks)]
    ordered = tuple((places[first], places[second]) for first, second in _ORDERED)
    unknown = {tokenizer.unk_token_id}
    openers = () if template.startswith("{}") else tuple(dict.fromkeys(found[0][-1] for found in read if found[0]))
    known = tuple(opener for opener in openers if opener not in unknown)
    if openers and not known:
        raise ValueError(
            f"{family.name}: expected a template whose beginning the tokenizer knows, got {template!r}; attach a "
            "family with its punctuation, or use '{}{}{}{}'"
        )
    return SpanRule(
        family.name, tuple(steps), frozenset(codes.codes), known, ordered=ordered, gap=gap, max_spans=max_spans
    )


def loc_rule(
    loc: VocabMap,
    seg: VocabMap | None = None,
    *,
    optional_mask: bool = False,
    gap: int = 0,
    max_spans: int | None = None,
) -> SpanRule:
    """PaliGemma: four codes y1, x1, y2, x2, then 16 of a mask if `seg` is given, which may lack if `optional_mask`.

    gap: by how much y2 and x2 lie above y1 and x1 at least; 1 leaves no empty box.
    """
    mask = () if seg is None else (tuple(seg.codes),) * MASK_CODES
    own = frozenset((*loc.codes, *(() if seg is None else seg.codes)))
    optional = len(mask) if optional_mask else 0
    steps = (*(tuple(loc.codes),) * 4, *mask)
    return SpanRule(loc.name, steps, own, ordered=_ORDERED, gap=gap, optional=optional, max_spans=max_spans)


def _pieces(tokenizer: Any, codes: VocabMap, text: str) -> list[list[int]]:
    """The ids before, between and behind four codes. Raises: ValueError if the tokenizer finds not four codes."""
    pieces: list[list[int]] = [[]]
    code = codes.codes[0]
    for number in tokenizer(text, add_special_tokens=False).input_ids:
        if number == code:
            pieces.append([])
        else:
            pieces[-1].append(number)
    if len(pieces) != 5:
        raise ValueError(f"{codes.name}: expected the tokenizer to read four codes in {text!r}, it read {len(pieces)}")
    return pieces
