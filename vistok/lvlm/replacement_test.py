"""Does a model answer from the depth tokens that it writes? Its own ones, and others in their place.

The answer is written anew with replaced codes (`replace_span`) in its spans; all words between them are the model's
own. "Ablate-to-Validate" (Zhang, Bigverdi, Krishna); grammar as in AURORA (arXiv:2412.03548). N visual tokens, D.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import LogitsProcessor

from vistok.data.scenes.render import render
from vistok.lvlm.count_questions import LIST_END
from vistok.lvlm.forced_codes import ForcedCodes
from vistok.lvlm.grammar import PerceptionGrammar
from vistok.lvlm.perception_model import PerceptionModel
from vistok.lvlm.perception_texts import PerceptionQuestion
from vistok.lvlm.point_questions import REPEATED
from vistok.lvlm.prompting import chat_prompt, encode_pictures, feature_inputs
from vistok.lvlm.scene_questions import scene_side
from vistok.lvlm.span_replacement import replace_span
from vistok.lvlm.span_rules import SpanRule, depth_rule

OWN = "chain"
REPLACED = ("oracle", "random", "first_repeat", "constant")
_PER_POINT, _ANSWER = 6, 4  # new tokens that a point with its span may take, and the answer


class Said(NamedTuple):
    """What the model says to one question. codes: local codes of its spans; answer: the name behind the last span."""

    text: str
    answer: str
    codes: tuple[int, ...]


def answer_direct(host: PerceptionModel, questions: Sequence[PerceptionQuestion], *, batch: int = 48) -> list[Said]:
    """Answers of a model that was trained to answer at once."""
    return SceneAnswers(host, questions, batch).written(_ANSWER)


def replacement_test(
    host: PerceptionModel,
    questions: Sequence[PerceptionQuestion],
    modes: Sequence[str] = REPLACED,
    *,
    batch: int = 48,
    seed: int = 0,
) -> dict[str, list[Said]]:
    """Answers by mode, that of the model's own spans (`OWN`) first.

    Under the grammar a span is START, one code, END, at most as many as the longest question has points, at least one
    before the end. For `replace_span` the codes of an answer are one span; "oracle" gives those of the question.
    Raises: ValueError for an unknown mode.
    """
    answers = SceneAnswers(host, questions, batch)
    vocabulary = answers.vocabulary
    longest = max(question.points for question in questions)
    rule = depth_rule(vocabulary, 1, max_spans=longest)
    found = {OWN: answers.written(_PER_POINT * longest + _ANSWER, rule)}
    generator = torch.Generator().manual_seed(seed)
    for mode in modes:
        forced: list[list[int]] = []
        for question, own in zip(questions, found[OWN], strict=True):
            written = question.codes if mode == "oracle" else own.codes
            span = vocabulary.span(torch.tensor(written, dtype=torch.int64))
            other = replace_span(span, vocabulary, mode, generator, torch.tensor(question.codes))
            forced.append(vocabulary.read_span(other).tolist())
        found[mode] = answers.written(_PER_POINT * longest + _ANSWER, rule, forced)
    return found


class SceneAnswers:
    """Continuations of prompts about scenes, each scene through the tower once."""

    def __init__(self, host: PerceptionModel, questions: Sequence[PerceptionQuestion], batch: int) -> None:
        if not questions:
            raise ValueError("replacement test: expected at least one question, got none")
        self.host, self.questions, self.batch = host, questions, batch
        self.vocabulary = host.attachment.maps[host.settings["family"]]
        self._tokenizer = host.processor.tokenizer
        side, seeds = scene_side(host.processor), list(dict.fromkeys(question.seed for question in questions))
        self._features: dict[int, Tensor] = {}
        with torch.inference_mode():
            for start in range(0, len(seeds), batch):
                part = seeds[start : start + batch]
                images = [Image.fromarray(render(seed, side).image) for seed in part]
                self._features |= zip(part, encode_pictures(host.model, host.processor, images), strict=True)

    def written(
        self,
        new_tokens: int,
        rule: SpanRule | None = None,
        forced: Sequence[Sequence[int]] | None = None,
        *,
        begun: Sequence[str] | None = None,
        required: bool = True,
    ) -> list[Said]:
        """What the model writes to each question; rule: of its spans; forced: local codes that it has to write.

        begun: words that its answers begin with, which are not among what it says; required: one span at least.
        """
        found: list[Said] = []
        for start in range(0, len(self.questions), self.batch):
            part = slice(start, start + self.batch)
            with torch.inference_mode():
                inputs = self._inputs(self.questions[part], [""] * self.batch if begun is None else begun[part])
                rows = self._batch(inputs, new_tokens, rule, None if forced is None else forced[part], required)
            found += [self.said(row) for row in rows]
        return found

    def said(self, ids: Sequence[int]) -> Said:
        """The words of an answer, the name that it ends with and its codes."""
        text = str(self._tokenizer.decode(ids, skip_special_tokens=True))
        ends = [place for place, number in enumerate(ids) if number in self.vocabulary.end]
        conclusion = str(self._tokenizer.decode(ids[ends[-1] + 1 if ends else 0 :], skip_special_tokens=True))
        words = [word for word in conclusion.split() if word not in (*REPEATED.values(), LIST_END)]
        numbers = torch.tensor(ids, dtype=torch.int64)
        codes = self.vocabulary.to_codes(numbers[self.vocabulary.is_code(numbers)]).tolist()
        return Said(text, " ".join(words), tuple(codes))

    def _inputs(self, questions: Sequence[PerceptionQuestion], begun: Sequence[str]) -> dict[str, Any]:
        processor = self.host.processor
        features = [self._features[question.seed] for question in questions]
        asked = [chat_prompt(processor, question.text) for question in questions]
        texts = [f"{text} {words}".rstrip() for text, words in zip(asked, begun, strict=False)]
        return feature_inputs(self.host.model, processor, texts, features)

    def _batch(
        self,
        inputs: dict[str, Any],
        new_tokens: int,
        rule: SpanRule | None,
        forced: Sequence[Sequence[int]] | None,
        required: bool,
    ) -> list[list[int]]:
        model, tokenizer = self.host.model, self._tokenizer
        prompt, end = inputs["input_ids"].shape[1], int(tokenizer.eos_token_id)
        processors: list[LogitsProcessor] = []
        if rule is not None:
            processors.append(
                PerceptionGrammar([rule], require=[rule.name] if required else (), eos=end, prompt_length=prompt)
            )
        if forced is not None:
            processors.append(ForcedCodes(self.vocabulary, forced, prompt))
        made = model.generate(
            **inputs,
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id or 0,
            logits_processor=processors,
        )
        return [_until(row, end) for row in made[:, prompt:].tolist()]


def _until(row: list[int], end: int) -> list[int]:
    return row[: row.index(end)] if end in row else row
