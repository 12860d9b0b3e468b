"""A language model held to well-formed perception spans while it generates (AURORA, arXiv:2412.03548, appendix).

AURORA's own decoding is a patched greedy search for a batch of one. This is a logits processor of transformers: rows of
a batch are in states of their own, and greedy search, sampling and beams all go through it. R rows, n ids, V scores.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessor

from vistok.lvlm.span_rules import SpanRule


class SpanState(NamedTuple):
    """Where a sequence stands. rule: of the span that has begun, None between spans; inside: ids of that span so far.

    counts: spans begun of each rule. last: the last id. dead: an id stands where none may.
    """

    rule: int | None
    inside: tuple[int, ...]
    counts: tuple[int, ...]
    last: int | None = None
    dead: bool = False


class PerceptionGrammar(LogitsProcessor):
    """Takes away every id that the rules do not allow; give it to `model.generate(logits_processor=[grammar])`.

    Ids of a span stand in spans only. A state comes from `input_ids` alone, so reordered beams keep theirs; rows that
    go on from one of the last call are read from there. require: names of rules of which a span must come before the
    end: whatever probability the end had goes to the likeliest id that begins such a span. prompt_length: leading ids
    to pass over, 0 if spans of the prompt count and may be unfinished; with `inputs_embeds` the prompt is not among
    `input_ids`.
    """

    def __init__(
        self,
        rules: Sequence[SpanRule],
        *,
        require: Sequence[str] = (),
        eos: int | Sequence[int] | None = None,
        prompt_length: int = 0,
    ) -> None:
        """Raises: ValueError if there are no rules, two begin alike, or `require` names none of them or lacks `eos`."""
        names = [rule.name for rule in rules]
        begins = [number for rule in rules for number in rule.steps[0]]
        if not rules or len(set(names)) != len(names) or len(set(begins)) != len(begins):
            raise ValueError(
                f"grammar: expected rules with names and first ids of their own, got {names}; one rule with "
                "optional_mask allows boxes with and without masks"
            )
        unknown = [name for name in require if name not in names]
        ends = () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)
        if unknown or (require and not ends):
            raise ValueError(
                f"grammar: expected require to name some of {names}, and eos with it, got {list(require)} and {eos}"
            )
        self.rules, self.ends, self.prompt_length = tuple(rules), ends, prompt_length
        self.required = tuple(names.index(name) for name in require)
        self._own = frozenset().union(*(rule.own for rule in rules))
        self._begun = {number: place for place, rule in enumerate(rules) for number in rule.steps[0]}
        self._start = SpanState(None, (), (0,) * len(rules))
        self._ids: Tensor | None = None
        self._states: list[SpanState] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids [R, n], scores [R, V] -> scores [R, V], minus infinity where an id may not follow.

        Raises: ValueError if the prompt breaks the rules, or V is too small for their ids.
        """
        if scores.shape[-1] <= max(self._own):
            raise ValueError(
                f"grammar: expected scores of more than {max(self._own)} ids, got {scores.shape[-1]}; the model lacks "
                "rows that its tokenizer has, vistok.lvlm.new_rows.attach adds them"
            )
        states = self.states(input_ids)
        rows = []
        for state, row in zip(states, scores, strict=True):
            rows.append(row if state.dead else self._masked(state, row))
        return torch.stack(rows)

    def states(self, input_ids: Tensor) -> list[SpanState]:
        """The state of every row of [R, n], from those of the last call as far as rows go on from there."""
        ids = input_ids.detach().cpu()
        held = self._ids
        if held is None or held.shape[1] > ids.shape[1]:
            held = None
        states = []
        for place, row in enumerate(ids):
            parent = None if held is None else _parent(held, row, place)
            since = self.prompt_length if parent is None or held is None else held.shape[1]
            state = self._start if parent is None else self._states[parent]
            for number in row[since:].tolist():
                state = self.advance(state, number)
            if state.dead and parent is None:
                self._report(row.tolist(), place)
            states.append(state)
        # On the CPU these may be part of a buffer that a search writes its next beams to.
        self._ids, self._states = ids.clone(), states
        return states

    def advance(self, state: SpanState, number: int) -> SpanState:
        """The state behind one more id."""
        if state.dead:
            return state
        if state.rule is not None:
            rule, place = self.rules[state.rule], len(state.inside)
            if number in rule.allowed(place, state.inside):
                inside = (*state.inside, number)
                if len(inside) == len(rule.steps):
                    return SpanState(None, (), state.counts, number)
                return SpanState(state.rule, inside, state.counts, number)
            if not self._may_stop(state):
                return state._replace(dead=True)
        place_of = self._begun.get(number)
        if place_of is not None and self._may_begin(state, place_of, number):
            counts = tuple(count + (place == place_of) for place, count in enumerate(state.counts))
            done = len(self.rules[place_of].steps) == 1
            return SpanState(None if done else place_of, () if done else (number,), counts, number)
        return SpanState(None, (), state.counts, number, dead=number in self._own)

    def _masked(self, state: SpanState, row: Tensor) -> Tensor:
        inside = state.rule is not None
        barred = torch.full_like(row, float("-inf"))
        if state.rule is not None:
            allowed = _index(self.rules[state.rule].allowed(len(state.inside), state.inside), row)
            barred[allowed] = row[allowed]
            if not self._may_stop(state):
                return barred
        free = row.clone()
        free[_index(tuple(self._own), row)] = float("-inf")
        for place in range(len(self.rules)):
            begin = self._beginning(state, place)
            if begin:
                free[_index(begin, row)] = row[_index(begin, row)]
        free = self._with_required(state, free)
        return torch.maximum(free, barred) if inside else free

    def _with_required(self, state: SpanState, row: Tensor) -> Tensor:
        lacking = [place for place in self.required if not state.counts[place]]
        if not lacking:
            return row
        rule = self.rules[lacking[0]]
        # Behind an opener the span itself is next; elsewhere the opener is.
        entry = self._beginning(state, lacking[0]) or rule.openers[:1]
        ends, first = _index(self.ends, row), _index(entry, row)
        # Spread over a thousand ids it would outweigh no word, and greedy search would write words for ever.
        likeliest = first[row[first].argmax()]
        end = row[ends].logsumexp(0)
        row[ends] = float("-inf")
        row[likeliest] = torch.logaddexp(row[likeliest], end)
        return row

    def _beginning(self, state: SpanState, place: int) -> tuple[int, ...]:
        """Ids with which a span of a rule may begin here."""
        rule = self.rules[place]
        return rule.allowed(0, ()) if self._may_begin(state, place, rule.steps[0][0]) else ()

    def _may_begin(self, state: SpanState, place: int, number: int) -> bool:
        rule = self.rules[place]
        left = rule.max_spans is None or state.counts[place] < rule.max_spans
        fits = number in rule.allowed(0, ())
        return left and fits and (not rule.openers or state.last in rule.openers)

    def _may_stop(self, state: SpanState) -> bool:
        """Whether what is left of the span that has begun may be left out."""
        if state.rule is None:
            return True
        rule = self.rules[state.rule]
        return bool(rule.optional) and len(state.inside) == len(rule.steps) - rule.optional

    def _report(self, row: Sequence[int], number: int) -> None:
        state = self._start
        for place, token in enumerate(row[self.prompt_length :], self.prompt_length):
            before, state = state, self.advance(state, token)
            if state.dead:
                within = "between spans" if before.rule is None else f"within {self.rules[before.rule].name!r}"
                raise ValueError(
                    f"grammar: expected a prompt that keeps the rules, row {number} has id {token} at place {place}, "
                    f"{within}; pass prompt_length={len(row)} to read only what is generated"
                )


def _parent(held: Tensor, row: Tensor, place: int) -> int | None:
    """The row of `held` that `row` goes on from, the one at the same place if it is that."""
    length = held.shape[1]
    if place < len(held) and torch.equal(held[place], row[:length]):
        return place
    same = (held == row[:length]).all(1).nonzero()
    return int(same[0]) if len(same) else None


def _index(ids: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.tensor(ids, dtype=torch.int64, device=like.device)
