"""The parts of `vistok eval prune` and `vistok compare pruners`: accuracy against tokens, tables, what is kept."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vistok.data.images import open_image
from vistok.data.scenes.render import render
from vistok.metrics.pareto import pareto_front
from vistok.report.inline_picture import InlinePicture, inline_picture
from vistok.report.json_parts import flattened
from vistok.report.kept_overlay import AskedPicture, KeptOverlay
from vistok.report.page import Part
from vistok.report.parts import Facts, Remarks
from vistok.report.sortable_table import Cell, SortableTable, cell_of, table_of
from vistok.report.svg_chart import Curve, LineChart, Mark

Rows = Sequence[Mapping[str, Any]]
_HEADINGS = (
    *("method", "budget", "accuracy (%)", "95 % interval", "tokens a layer", "of all (%)", "FLOPs (%)"),
    *("against random (points)", "its interval", "verdict", "loses in", "settings", "refused"),
)
_DIGEST = 64  # hexadecimal digits of a sha256
_AGAIN = (
    "Which tokens were kept is not in this result; give the same `vistok eval prune` command again, which goes on from "
    "the answers that are there."
)


def is_pruning(value: Mapping[str, Any]) -> bool:
    """Whether a result is one of `vistok eval prune`."""
    rows = value.get("rows")
    return (
        isinstance(value.get("settings"), dict)
        and isinstance(rows, list)
        and bool(rows)
        and all(isinstance(row, dict) and {"method", "budget", "score", "visual_tokens"} <= row.keys() for row in rows)
    )


def prune_parts(value: Mapping[str, Any], samples: int, room: int) -> list[Part]:
    """All parts. Raises: KeyError, TypeError if a row is not as the command writes it."""
    rows: Rows = value["rows"]
    scored = [row for row in rows if row["score"] is not None]
    parts: list[Part] = [_chart(scored)]
    parts += _overlay(value.get("shown"), samples, room)
    parts.append(prune_table(rows))
    kinds = list(dict.fromkeys(kind for row in scored for kind in row.get("kinds", {})))
    if kinds:
        by_kind = ([row["method"], _budget(row), *(_of_kind(row, kind) for kind in kinds)] for row in scored)
        parts.append(table_of("Accuracy by kind of question (%)", ["method", "budget", *kinds], by_kind))
    notes = value.get("notes")
    parts += [Remarks(list(map(str, notes)))] if isinstance(notes, list) and notes else []
    told = [(name, _short(each)) for name, each in flattened(value["settings"]).items() if each is not None]
    return [*parts, Facts("Settings", told)]


def prune_table(rows: Rows) -> SortableTable:
    """A row for each method and budget; those on the Pareto front stand out."""
    front = _front([row for row in rows if row["score"] is not None])
    on_front = frozenset(number for number, row in enumerate(rows) if any(row is one for one in front))
    words = "on the Pareto front: no other row is as accurate with fewer tokens"
    return table_of("Accuracy with fewer visual tokens", _HEADINGS, map(_cells, rows), marked=on_front, marked_as=words)


def _chart(scored: Rows) -> LineChart:
    front = _front(scored)
    curves = []
    level = None
    for name in dict.fromkeys(row["method"] for row in scored):
        own = [row for row in scored if row["method"] == name]
        if name == "unpruned":
            level = ("unpruned", 100 * own[0]["score"]["accuracy"])
            continue
        marks = []
        for row in own:
            low, high = row["score"]["interval"]
            accuracy = 100 * row["score"]["accuracy"]
            text = f"{name} at {row['budget']:.0%}: {accuracy:.1f} % with {row['visual_tokens']:.1f} tokens a layer"
            marks.append(
                Mark(row["visual_tokens"], accuracy, 100 * low, 100 * high, text, any(row is one for one in front))
            )
        curves.append(Curve(name, marks))
    return LineChart(
        "Accuracy against tokens",
        "visual tokens per layer on average",
        "exact match (%), with 95 % intervals",
        curves,
        level,
        "Pareto front",
    )


def _front(scored: Rows) -> list[Mapping[str, Any]]:
    return [scored[at] for at in pareto_front([(row["visual_tokens"], row["score"]["accuracy"]) for row in scored])]


def _cells(row: Mapping[str, Any]) -> list[Cell]:
    score = row["score"]
    if score is None:
        return [*map(cell_of, (row["method"], _budget(row))), *[Cell("-")] * 10, Cell(str(row.get("refused") or ""))]
    against = row.get("against_random")
    told = [None, ""] if against is None else [_fixed(100 * against["difference"], "+.1f"), _interval(against, "+.1f")]
    values = [
        *(row["method"], _budget(row), _fixed(100 * score["accuracy"]), _interval(score)),
        *(_fixed(row["visual_tokens"]), _fixed(100 * row["kept"]), _fixed(100 * row["flops_share"])),
        *(*told, row.get("verdict", ""), ", ".join(row.get("loses_to_random_in", ()))),
        *(_short(row.get("settings", "")), ""),
    ]
    return [cell_of("" if value is None else value) for value in values]


def _of_kind(row: Mapping[str, Any], kind: str) -> Cell:
    found = row.get("kinds", {}).get(kind)
    return Cell("-") if found is None else _fixed(100 * found["accuracy"])


def _budget(row: Mapping[str, Any]) -> Cell:
    return Cell(f"{row['budget']:.4g}", row["budget"])


def _fixed(value: float, form: str = ".1f") -> Cell:
    return Cell(f"{value:{form}}", value)


def _interval(found: Mapping[str, Any], form: str = ".1f") -> str:
    low, high = found["interval"]
    return f"{100 * low:{form}} to {100 * high:{form}}"


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={each}" for name, each in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    if len(text) == _DIGEST and set(text) <= set("0123456789abcdef"):
        return text[:16]
    return text if len(text) <= 200 else text[:200] + " ..."


def _overlay(shown: Any, samples: int, room: int) -> list[Part]:
    if not isinstance(shown, dict):
        return [Remarks([_AGAIN])]
    pictures: list[AskedPicture] = []
    for asked in shown["questions"][:samples]:
        rows, cols = asked["grid"] or (0, 0)
        name = str(asked["picture"])
        title = name if shown["scene_side"] is None else f"scene {name}"
        picture = _opened(asked["picture"], shown["scene_side"])
        room -= 0 if picture is None else len(picture.uri)
        if room < 0:
            break
        pictures.append(AskedPicture(title, picture, rows, cols, asked["question"], asked["answer"]))
    if not pictures:
        return []
    kept: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for row in shown["rows"]:
        told = [
            (_digits(kept, asked.rows * asked.cols), answer)
            for kept, answer, asked in zip(row["kept"], row["answers"], pictures, strict=False)
        ]
        if any(digits for digits, _ in told):
            kept.setdefault(row["method"], {})[f"{row['budget']:g}"] = told
    missing = [one.name for one in pictures if one.picture is None]
    said = [f"These pictures were not found where they were asked about: {', '.join(missing)}."] if missing else []
    said += [
        f"{row['method']} at {row['budget']:.0%}: what it keeps is not shown: {row['why_not']}"
        for row in shown["rows"]
        if row.get("why_not")
    ]
    if not kept:
        said.append("No method says which tokens it keeps of this model.")
    overlay: list[Part] = [KeptOverlay("What is kept of a picture", pictures, kept)] if kept else []
    return [*overlay, *([Remarks(said)] if said else [])]


def _digits(kept: str, tokens: int) -> str:
    """Which tokens of a grid are kept, empty if it has none. Raises: ValueError unless a digit stands for each four."""
    if not isinstance(kept, str) or (kept and tokens and not re.fullmatch(f"[0-9a-f]{{{-(-tokens // 4)}}}", kept)):
        raise ValueError(f"expected a hexadecimal digit for each four of {tokens} tokens, got {str(kept)[:40]!r}")
    return kept if tokens else ""


def _opened(picture: Any, side: int | None) -> InlinePicture | None:
    if side is not None:
        return inline_picture(Image.fromarray(render(int(picture), int(side)).image))
    path = Path(picture)
    try:
        return inline_picture(open_image(path)) if path.is_file() else None
    except (ValueError, OSError):
        return None
