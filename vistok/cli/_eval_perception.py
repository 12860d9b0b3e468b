"""`vistok eval perception`: answers with depth tokens, without them, and with other tokens in their place."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from vistok.data.scenes.splits import SPLITS
from vistok.metrics.accuracy import Accuracy, PairedDifference, accuracy, accuracy_by_kind, paired_difference
from vistok.report.json_file import write_json

if TYPE_CHECKING:  # transformers takes seconds to import, and it is an extra
    from vistok.lvlm.point_questions import PointQuestion
    from vistok.lvlm.replacement_test import Said


def perception(
    chain: str = "aurora_micro",
    direct: str | None = None,
    *,
    questions: int = 240,
    split: str = "test",
    seed: int = 0,
    json: str | None = None,
) -> None:
    """Ask which thing of a scene is nearest or farthest; print what depth tokens in front of the answer are worth.

    Args:
        chain: aurora_micro, or OUT/model of `vistok train aurora`, a model that writes depth tokens first.
        direct: OUT/model of a run with chain: false, which answers at once.
        questions: how many; at most three about a scene.
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
        from vistok.lvlm.point_questions import PointTexts, point_questions
        from vistok.lvlm.replacement_test import OWN, answer_direct, replacement_test
    except ImportError as error:
        raise ImportError(f"eval perception needs the extra: pip install 'vistok[lvlm]' ({error})") from error
    host = load_perception(chain)
    asked = point_questions(PointTexts(host.attachment.families[0]), questions, split=split)
    found: dict[str, list[Said]] = {}
    if direct is not None:
        found["direct"] = answer_direct(load_perception(direct), asked)
    found |= replacement_test(host, asked, seed=seed)
    right = {name: [s.answer == q.answer for s, q in zip(said, asked, strict=True)] for name, said in found.items()}
    right["program"] = [q.read(s.codes) == q.answer for s, q in zip(found[OWN], asked, strict=True)]
    rows = {name: _Row(name, hits, right[OWN], asked) for name, hits in right.items()}
    blind = sum(1 / question.points for question in asked) / len(asked)
    console = Console(width=max(Console().width, 110))
    console.print(_table(rows.values()))
    codes = _codes(found[OWN], asked) | {
        "true_by_program": sum(q.read(q.codes) == q.answer for q in asked) / len(asked)
    }
    console.print(
        f"{len(asked)} questions about {split} scenes, by guessing {100 * blind:.1f} %; of the model's own depth codes "
        f"{100 * codes['exact']:.1f} % are the true ones, {100 * codes['within_one']:.1f} % at most one step off. "
        f"program: the model's own codes compared by program; true codes give {100 * codes['true_by_program']:.1f} %",
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

    def __init__(self, name: str, right: list[bool], own: list[bool], asked: "list[PointQuestion]") -> None:
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


def _table(rows: Any) -> Table:
    """One row for each way to answer; percent."""
    rows = list(rows)
    kinds, points = sorted(rows[0].kinds), sorted(rows[0].points)
    table = Table("depth tokens", title="nearest and farthest of named things: exact match (%)")
    for heading in ("all", "95 % interval", *kinds, *(f"{count} points" for count in points), "to chain"):
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


def _codes(said: "list[Said]", asked: "list[PointQuestion]") -> dict[str, float]:
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
