"""`vistok eval perception`: answers with perception tokens, without them, and with other tokens in their place."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from vistok.data.scenes.splits import SPLITS
from vistok.metrics.accuracy import Accuracy, PairedDifference, accuracy, accuracy_by_kind, paired_difference
from vistok.report.json_file import write_json

if TYPE_CHECKING:  # transformers takes seconds to import, and it is an extra
    from vistok.lvlm.perception_texts import PerceptionQuestion
    from vistok.lvlm.replacement_test import Said

_DEPTHS, _COUNTING = "nearest and farthest of named things", "how many of a colour or a shape"


def perception(
    chain: str = "aurora_micro",
    direct: str | None = None,
    *,
    questions: int = 240,
    split: str = "test",
    seed: int = 0,
    json: str | None = None,
) -> None:
    """Ask which thing of a scene is nearest, or how many there are; print what tokens before the answer are worth.

    Args:
        chain: aurora_micro, or OUT/model of `vistok train aurora` (depths) or aurora_count (places, then a number).
        direct: OUT/model of a run with chain: false, which answers at once.
        questions: how many; of depths at most three about a scene.
        split: of the scenes: validation, test, heldout.
        seed: of the random tokens.
        json: file to write all numbers to.
    """
    if split not in SPLITS or split == "train":
        raise ValueError(f"--split: expected validation, test or heldout, got {split!r}")
    if questions < 1:
        raise ValueError(f"--questions: expected at least 1, got {questions}")
    try:
        from vistok.lvlm.perception_model import load_perception
        from vistok.lvlm.perception_rows import asked_of, chain_rows, counts_things
        from vistok.lvlm.replacement_test import OWN, answer_direct
    except ImportError as error:
        raise ImportError(f"eval perception needs the extra: pip install 'vistok[lvlm]' ({error})") from error
    host = load_perception(chain)
    asked, counting = asked_of(host, questions, split), counts_things(host)
    found: dict[str, list[Said]] = {}
    if direct is not None:
        beside = load_perception(direct)
        if counts_things(beside) != counting:
            raise ValueError(f"--direct: expected a model of the same questions as {chain}, got {direct}")
        found["direct"] = answer_direct(beside, asked)
    found |= chain_rows(host, asked, seed=seed)
    right = {name: [s.answer == q.answer for s, q in zip(said, asked, strict=True)] for name, said in found.items()}
    right["program"] = [q.read(s.codes) == q.answer for s, q in zip(found[OWN], asked, strict=True)]
    rows = {name: _Row(name, hits, right[OWN], asked) for name, hits in right.items()}
    blind = _blind(asked, counting)
    console = Console(width=max(Console().width, 110))
    console.print(_table(rows.values(), _COUNTING if counting else _DEPTHS))
    codes = _codes(found[OWN], asked) | {
        "true_by_program": sum(q.read(q.codes) == q.answer for q in asked) / len(asked)
    }
    console.print(
        f"{len(asked)} questions about {split} scenes, by guessing {100 * blind:.1f} %; of the model's own codes "
        f"{100 * codes['exact']:.1f} % are the true ones, {100 * codes['within_one']:.1f} % at most one step off. "
        f"program: the model's own codes {'counted' if counting else 'compared'} by program; true codes give "
        f"{100 * codes['true_by_program']:.1f} %",
        highlight=False,
        soft_wrap=True,
    )
    if json is not None:
        settings = {"chain": chain, "direct": direct, "questions": len(asked), "split": split, "seed": seed}
        numbers = {name: row.numbers() for name, row in rows.items()}
        write_json(json, {"accuracy": numbers[OWN]["accuracy"], "rows": numbers, "codes": codes, "blind": blind} | {
            "settings": settings
        })  # fmt: skip


class _Row:
    """Accuracy of one way to answer, by kind and by number of points, and its difference to the chain's own."""

    def __init__(self, name: str, right: list[bool], own: list[bool], asked: "Sequence[PerceptionQuestion]") -> None:
        self.name = name
        self.overall = accuracy(right)
        self.kinds = accuracy_by_kind([question.kind for question in asked], right)
        self.points = accuracy_by_kind([str(question.points) for question in asked], right)
        self.difference: PairedDifference = paired_difference(own, right)

    def numbers(self) -> dict[str, Any]:
        """For the JSON file."""
        parts = {name: {kind: asdict(value) for kind, value in of.items()} for name, of in self._parts()}
        return asdict(self.overall) | parts | {"against_chain": asdict(self.difference)}

    def _parts(self) -> list[tuple[str, dict[str, Accuracy]]]:
        return [("kinds", self.kinds), ("points", self.points)]


def _blind(asked: "Sequence[PerceptionQuestion]", counting: bool) -> float:
    """Share of right guesses: of counts always the most frequent number, of depths any of the named things."""
    if counting:
        return max(Counter(question.answer for question in asked).values()) / len(asked)
    return sum(1 / question.points for question in asked) / len(asked)


def _table(rows: Any, title: str) -> Table:
    """One row for each way to answer; percent."""
    rows = list(rows)
    kinds, points = sorted(rows[0].kinds), sorted(rows[0].points)
    table = Table("tokens", title=f"{title}: exact match (%)")
    for heading in ("all", "95 % interval", *kinds, *(f"{count} things" for count in points), "to chain"):
        table.add_column(heading, justify="right")
    for row in rows:
        low, high = row.overall.interval
        cells = [row.kinds.get(kind) for kind in kinds] + [row.points.get(count) for count in points]
        table.add_row(
            {"direct": "none: direct", "chain": "its own: chain"}.get(row.name, row.name),
            f"{100 * row.overall.accuracy:.1f}",
            f"{100 * low:.1f} to {100 * high:.1f}",
            *("-" if cell is None else f"{100 * cell.accuracy:.1f}" for cell in cells),
            f"{100 * row.difference.difference:+.1f}",
        )
    return table


def _codes(said: "list[Said]", asked: "Sequence[PerceptionQuestion]") -> dict[str, float]:
    """How often a written code is the true one, and at most one step off, where as many were written as asked for."""
    pairs = [
        abs(own - true)
        for one, question in zip(said, asked, strict=True)
        if len(one.codes) == len(question.codes)
        for own, true in zip(one.codes, question.codes, strict=True)
    ]
    complete = sum(len(one.codes) == len(question.codes) for one, question in zip(said, asked, strict=True))
    count = max(1, len(pairs))
    return {
        "exact": sum(off == 0 for off in pairs) / count,
        "within_one": sum(off <= 1 for off in pairs) / count,
        "complete": complete / len(asked),
    }
