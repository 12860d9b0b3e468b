"""Does a model answer from the depth tokens that it writes? Its own ones, and others in their place.

The answer is written up to its last span, the spans' codes are replaced (`replace_span`), and the model goes on from
there. "Ablate-to-Validate" (Zhang, Bigverdi, Krishna); grammar as in AURORA (arXiv:2412.03548). N visual tokens, D.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import LogitsProcessor

from vistok.data.scenes.render import render
from vistok.lvlm.family import family_of
from vistok.lvlm.grammar import PerceptionGrammar
from vistok.lvlm.inputs import with_features
from vistok.lvlm.perception_model import PerceptionModel
from vistok.lvlm.point_questions import PointQuestion
from vistok.lvlm.prompting import chat_prompt, encode_pictures
from vistok.lvlm.scene_questions import scene_side
from vistok.lvlm.span_replacement import replace_span
from vistok.lvlm.span_rules import depth_rule
from vistok.lvlm.vocabulary import VocabMap

OWN = "chain"
REPLACED = ("oracle", "random", "first_repeat", "constant")
_PER_POINT, _CONCLUSION = 7, 4  # tokens of a point with its span, of what follows the last span


class Said(NamedTuple):
    """What the model says to one question. codes: local codes of its spans; label: the last behind the last span."""

    text: str
    label: str | None
    codes: tuple[int, ...]


def answer_direct(host: PerceptionModel, questions: Sequence[PointQuestion], *, batch: int = 48) -> list[Said]:
    """Answers of a model that was trained to say the label at once."""
    answers = _Answers(host, questions, batch)
    return [answers.said(ids) for ids in answers.go_on([[]] * len(questions), _CONCLUSION)]


def replacement_test(
    host: PerceptionModel,
    questions: Sequence[PointQuestion],
    modes: Sequence[str] = REPLACED,
    *,
    batch: int = 48,
    seed: int = 0,
) -> dict[str, list[Said]]:
    """Answers by mode, that of the model's own spans (`OWN`) first; all start from the same written spans.

    Under the grammar a span is START, one code, END, one for each point at most, at least one before the end. Where the
    model wrote not as many spans as there are points, "oracle" leaves them as they are.
    Raises: ValueError for an unknown mode.
    """
    answers = _Answers(host, questions, batch)
    vocabulary = answers.vocabulary
    longest = max(question.points for question in questions)
    grammar = {"codes": vocabulary, "count": 1, "max_spans": longest}
    own = answers.go_on([[]] * len(questions), _PER_POINT * longest + _CONCLUSION, grammar)
    found = {OWN: [answers.said(ids) for ids in own]}
    generator = torch.Generator().manual_seed(seed)
    for mode in modes:
        prefixes = []
        for question, ids in zip(questions, own, strict=True):
            written = torch.tensor(_without_a_cut_span(ids, vocabulary), dtype=torch.int64)
            spans = vocabulary.find_spans(written)
            begun = written[: spans[-1].stop if spans else 0]
            oracle = torch.tensor(question.codes)
            kept = mode == "oracle" and int(vocabulary.is_code(begun).sum()) != len(oracle)
            prefixes.append(replace_span(begun, vocabulary, "identity" if kept else mode, generator, oracle).tolist())
        ends = answers.go_on(prefixes, _CONCLUSION)
        found[mode] = [answers.said([*begun, *end]) for begun, end in zip(prefixes, ends, strict=True)]
    return found


class _Answers:
    """Continuations of prompts about scenes, each scene through the tower once."""

    def __init__(self, host: PerceptionModel, questions: Sequence[PointQuestion], batch: int) -> None:
        if not questions:
            raise ValueError("replacement test: expected at least one question, got none")
        self.host, self.questions, self.batch = host, questions, batch
        self.vocabulary = host.attachment.maps[host.settings["family"]]
        self._tokenizer = host.processor.tokenizer
        self._labels = {question.label for question in questions}
        side, seeds = scene_side(host.processor), list(dict.fromkeys(question.seed for question in questions))
        self._features: dict[int, Tensor] = {}
        with torch.inference_mode():
            for start in range(0, len(seeds), batch):
                part = seeds[start : start + batch]
                images = [Image.fromarray(render(seed, side).image) for seed in part]
                self._features |= zip(part, encode_pictures(host.model, host.processor, images), strict=True)

    def go_on(
        self, begun: Sequence[Sequence[int]], new_tokens: int, grammar: Mapping[str, Any] | None = None
    ) -> list[list[int]]:
        """What the model writes behind each prompt and the ids of an answer that has begun, without its end."""
        found: list[list[int]] = []
        for start in range(0, len(begun), self.batch):
            stop = start + self.batch
            with torch.inference_mode():
                found += self._batch(self.questions[start:stop], begun[start:stop], new_tokens, grammar)
        return found

    def said(self, ids: Sequence[int]) -> Said:
        """The words of an answer, its label and its codes."""
        text = str(self._tokenizer.decode(ids, skip_special_tokens=True))
        ends = [place for place, number in enumerate(ids) if number in self.vocabulary.end]
        conclusion = str(self._tokenizer.decode(ids[ends[-1] + 1 if ends else 0 :], skip_special_tokens=True))
        labels = [word for word in conclusion.split() if word in self._labels]
        numbers = torch.tensor(ids, dtype=torch.int64)
        codes = self.vocabulary.to_codes(numbers[self.vocabulary.is_code(numbers)]).tolist()
        return Said(text, labels[-1] if labels else None, tuple(codes))

    def _batch(
        self,
        questions: Sequence[PointQuestion],
        begun: Sequence[Sequence[int]],
        new_tokens: int,
        grammar: Mapping[str, Any] | None,
    ) -> list[list[int]]:
        model, tokenizer = self.host.model, self._tokenizer
        features = [self._features[question.seed] for question in questions]
        token = self.host.processor.image_token
        texts = [chat_prompt(self.host.processor, question.text) for question in questions]
        rows = [
            [*tokenizer(text.replace(token, token * len(own))).input_ids, *ids]
            for text, own, ids in zip(texts, features, begun, strict=True)
        ]
        longest = max(map(len, rows))
        fill = tokenizer.pad_token_id or 0
        ids = torch.tensor([[fill] * (longest - len(row)) + row for row in rows], device=model.device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
        inputs = with_features({"input_ids": ids, "attention_mask": mask}, family_of(model), {"image": features})
        processors: list[LogitsProcessor] = []
        end = int(tokenizer.eos_token_id)
        if grammar is not None:
            rule = depth_rule(**grammar)
            processors = [PerceptionGrammar([rule], require=[rule.name], eos=end, prompt_length=longest)]
        made = model.generate(
            **inputs, max_new_tokens=new_tokens, do_sample=False, pad_token_id=fill, logits_processor=processors
        )
        return [_until(row, end) for row in made[:, longest:].tolist()]


def _until(row: list[int], end: int) -> list[int]:
    return row[: row.index(end)] if end in row else row


def _without_a_cut_span(ids: list[int], vocabulary: VocabMap) -> list[int]:
    """All of an answer, but for a span at its end for which there were not enough new tokens."""
    begins = [place for place, number in enumerate(ids) if number in vocabulary.begin]
    ends = [place for place, number in enumerate(ids) if number in vocabulary.end]
    return ids[: begins[-1]] if len(begins) > len(ends) else ids
