"""One method at one budget over many questions, kept in a file: a comparison that stops goes on at the next file."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from vistok.data.shard import write_atomic
from vistok.lvlm.answer import answer_questions
from vistok.lvlm.context import reads_tower
from vistok.lvlm.downsample import NAME as DOWNSAMPLE
from vistok.lvlm.downsample import shrink, sizes_follow_pictures
from vistok.lvlm.prompting import Read, VisualQuestion
from vistok.lvlm.prune import prune
from vistok.lvlm.pruning_methods import Built, Method
from vistok.metrics.accuracy import exact_matches
from vistok.weights import fingerprint

OnBatch = Callable[[int], None]


class Refused(ValueError):
    """A method that cannot prune this model, or not down to this budget, by its own words."""


@dataclass(frozen=True)
class Run:
    """answers in the order of the questions; means over questions of the visual tokens per layer and of the language
    model's operations for a prompt, by formula (`PruneReport.flops`)."""

    answers: list[str]
    visual_tokens: float
    flops: dict[str, float]


@dataclass(frozen=True)
class Asking:
    """Questions to a model in evaluation mode. name: what the user calls the model; answers lie in `folder`."""

    name: str
    model: Any
    processor: Any
    questions: Sequence[VisualQuestion]
    read: Read
    folder: Path
    batch: int = 32
    max_new_tokens: int = 8

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What all answers depend on, as JSON takes it."""
        asked = [[str(q.picture), q.text, q.answer, q.kind] for q in self.questions]
        digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        return {
            "model": self.name,
            "weights": fingerprint(self.model, {}),
            "questions": len(asked),
            "questions_sha256": digest,
            "batch": self.batch,
            "words": self.max_new_tokens,
        }

    def right(self, run: Run) -> list[bool]:
        """Whether each answer is the true one."""
        return exact_matches(run.answers, [question.answer for question in self.questions])

    def run(
        self,
        method: Method | None,
        budget: float = 1.0,
        candidate: Mapping[str, Any] | None = None,
        *,
        file: str | None = None,
        on_batch: OnBatch | None = None,
    ) -> Run:
        """Answers under a method, from its file where they are there, else asked for and then written, all or none.

        method: None leaves all tokens. budget: share of the visual tokens, in the mean over layers. candidate: settings
        on top of the method's. file: name, if not the method's and budget's.
        Raises: ValueError if the file is of other settings; Refused if the method cannot do it in this model.
        """
        built = Built([], {}) if method is None else method.build(candidate or {})
        settings = self.settings | {"budget": budget, "pruner": built.identity}
        name = "unpruned" if method is None else f"{method.name}_{budget:g}"
        path = self.folder / f"{file or name}.json"
        found = _stored(path, settings)
        if found is None:
            try:
                found = self._ask(built, budget, method is not None and method.name == DOWNSAMPLE, on_batch)
            except ValueError as error:
                # Without a pruner, what is wrong is the model or a picture, and no other row would do better.
                if method is None:
                    raise
                raise Refused(str(error)) from error
            text = json.dumps({"settings": settings, **asdict(found)}, indent=1, allow_nan=False)
            write_atomic(path, text.encode())
        elif on_batch is not None:
            on_batch(len(self.questions))
        return found

    def _ask(self, built: Built, budget: float, smaller: bool, on_batch: OnBatch | None) -> Run:
        read, pruners = self.read, built.pruners
        if smaller:
            read = _then(self.read, shrink(self.model, self.processor, budget))
            pruners = [] if sizes_follow_pictures(self.model) else pruners
        means = _Means()

        def note(count: int) -> None:
            report = handle.report()
            means.add(count, {"visual_tokens": report.mean_visual, **report.flops})
            if on_batch is not None:
                on_batch(count)

        generator = torch.Generator().manual_seed(0)
        with prune(self.model, pruners, budget=built.budgets(budget)[: len(pruners)], generator=generator) as handle:
            answers = answer_questions(
                *(self.model, self.processor, self.questions, read),
                batch=self.batch,
                max_new_tokens=self.max_new_tokens,
                pixels=any(map(reads_tower, pruners)),
                on_batch=note,
            )
        values = means.values()
        return Run(answers, values.pop("visual_tokens"), values)


class _Means:
    """Means over questions of what batches report."""

    def __init__(self) -> None:
        self._count, self._sums = 0, dict[str, float]()

    def add(self, count: int, values: Mapping[str, float]) -> None:
        self._count += count
        self._sums = {name: self._sums.get(name, 0.0) + count * value for name, value in values.items()}

    def values(self) -> dict[str, float]:
        return {name: total / self._count for name, total in self._sums.items()}


def _then(read: Read, change: Callable[[Any], Any]) -> Read:
    return lambda picture: change(read(picture))


def _stored(path: Path, settings: Mapping[str, Any]) -> Run | None:
    """What a file holds, None if there is none."""
    if not path.is_file():
        return None
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        known, run = held["settings"], Run(held["answers"], held["visual_tokens"], held["flops"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected answers of this command, got {error!r}; delete the file") from error
    # JSON has no tuples, and what is compared must have gone through it.
    for name, value in json.loads(json.dumps(settings)).items():
        if known.get(name) != value:
            raise ValueError(
                f"{path}: expected answers with {name} {value}, got those with {known.get(name)}; give another --out, "
                f"or delete that file"
            )
    return run


def choose(asking: Asking, method: Method, budget: float, on_batch: OnBatch | None = None) -> dict[str, Any]:
    """The candidate of a method that answers most questions at a budget, the first among equals.

    Raises: Refused, in the words of the first candidate, if none can do it.
    """
    if len(method.candidates) == 1:
        return method.candidates[0]
    hits: list[int] = []
    errors: list[Refused] = []
    for number, candidate in enumerate(method.candidates):
        try:
            run = asking.run(method, budget, candidate, file=f"{method.name}_{budget:g}_{number}", on_batch=on_batch)
            hits.append(sum(asking.right(run)))
        except Refused as error:
            errors.append(error)
            hits.append(-1)
    if max(hits) < 0:
        raise errors[0]
    return method.candidates[hits.index(max(hits))]
