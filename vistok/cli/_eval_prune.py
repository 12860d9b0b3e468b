"""`vistok eval prune`: how many questions a vision-language model still answers with fewer visual tokens."""

import hashlib
import json as json_format
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vistok.cli._questions import asking_progress, own_questions
from vistok.data.shard import write_atomic
from vistok.report.comparison_files import write_comparison
from vistok.report.contact_sheet import write_png
from vistok.report.json_file import write_json
from vistok.report.line_chart import Line, Point, line_chart
from vistok.report.prune_parts import prune_table

if TYPE_CHECKING:  # transformers takes seconds to import, and it is an extra
    from vistok.lvlm.pruning_runs import Asking
    from vistok.lvlm.pruning_table import Row

_WIDTH = 132
_PICTURES = 4096
_SHOWN = 4  # questions of which it is told which tokens every method keeps


def prune(
    model: str = "micro_lvlm",
    *,
    methods: list[str] | None = None,
    budgets: list[str] | None = None,
    questions: int = 1000,
    tune: bool = False,
    tune_questions: int = 500,
    data: str | None = None,
    images: str | None = None,
    out: str | None = None,
    batch: int = 32,
    words: int = 8,
    device: str = "cpu",
    json: str | None = None,
) -> None:
    """Ask the same questions with fewer and fewer visual tokens; print accuracy of each method beside random's.

    random, uniform, pool (averages of neighbours) and downsample (a smaller picture) are always among the methods. A
    run that stops goes on where it stopped when the same command is given again. The folder holds table.csv,
    table.md, plot.png, report.html, result.json and the answers.

    Args:
        model: micro_lvlm, a folder of a LLaVA-family model with its processor, or hf:owner/name[@revision].
        methods: more pruners, as `vistok list` shows them, or YAML files with base, settings, weights, tune.
        budgets: shares of the visual tokens to keep, per layer on average (default 0.5,0.25,0.1).
        questions: how many, about rendered scenes of the test seeds; always the same ones.
        tune: choose each method's settings among its `tune:` for each budget, on scenes of the validation seeds.
        tune_questions: how many of those.
        data: questions of your own instead, in LLaVA's conversation format, as JSON Lines or a JSON list.
        images: folder that the pictures of --data are relative to, if not that of the file.
        out: folder of the results, if not one under prune-eval/ that belongs to these settings.
        batch: questions at a time.
        words: tokens that an answer may have.
        device: cpu, cuda and so on.
        json: file to write all numbers to.
    """
    shares = _shares(budgets or ["0.5,0.25,0.1"])
    _check(questions, tune, tune_questions, data, images)
    try:
        from vistok.lvlm import load, prompting, pruning_methods, pruning_table, scene_questions
        from vistok.lvlm.pruning_runs import Asking
    except ImportError as error:
        raise ImportError(f"eval prune needs the extra: pip install 'vistok[lvlm]' ({error})") from error
    chosen = pruning_methods.find_methods(_words(methods or ["k_center", "todre", "transprune"]))
    host, processor = load.load_lvlm(model, device=device)
    side = scene_questions.scene_side(processor)
    asked = (
        scene_questions.scene_questions("test", questions) if data is None else own_questions(data, images, questions)
    )
    read = lru_cache(_PICTURES)(scene_questions.scene_picture(side)) if data is None else prompting.as_picture
    asking = Asking(model, host, processor, asked, read, Path(), batch, words)
    folder = _default_folder(asking) if out is None else Path(out)
    asking = replace(asking, folder=folder / "answers")
    tuning = None
    if tune:
        validation = scene_questions.scene_questions("validation", tune_questions)
        tuning = replace(asking, questions=validation, folder=folder / "tuning")
    began = time.perf_counter()
    with asking_progress(_total(chosen, len(shares), len(asked), tune_questions if tune else 0)) as advance:
        rows = pruning_table.compare(asking, chosen, shares, tuning=tuning, on_batch=advance)
    front = ", ".join(f"{row.method} at {row.budget:.0%}" for row in pruning_table.pareto_front(rows))
    notes = [*pruning_table.losses(rows), *_refusals(rows), f"Pareto front: {front}", *_explained()]
    write_atomic(folder / "table.csv", pruning_table.as_csv(rows).encode())
    write_png(_plot(rows, model), folder / "plot.png")
    given = {"model": model, "methods": [method.name for method in chosen], "budgets": shares, "tune": tune}
    given |= {"tune_questions": tune_questions if tune else None, "data": data, **asking.settings}
    result: dict[str, Any] = {"settings": given, "rows": [_as_json(row) for row in rows], "notes": notes}
    result["shown"] = _shown(asking, chosen, rows, side if data is None else None)
    write_json(folder / "result.json", result)
    written = write_comparison(folder, prune_table(result["rows"]))
    console = Console()
    # A terminal that is narrower had better wrap the lines of the table than lose its columns.
    wide = Console(width=max(console.width, _WIDTH))
    wide.print(_table(rows))
    files = ", ".join(["table.csv", *written, "plot.png", "result.json"])
    for line in [*notes, f"{folder}: {files}; {time.perf_counter() - began:.0f} s"]:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    if json is not None:
        write_json(json, result)


def _shown(asking: "Asking", methods: list[Any], rows: "list[Row]", side: int | None) -> dict[str, Any]:
    """Of the first questions the picture, its grid and, for every row, the tokens kept and the answer.

    side: of the rendered scenes that pictures are seeds of, None for files.
    """
    from vistok.lvlm.kept_tokens import first_questions, kept_tokens, picture_grids

    few = first_questions(asking, _SHOWN)
    by_name = {method.name: method for method in methods}
    questions = [
        {
            "picture": q.picture if side is not None else str(q.picture),
            "question": q.text,
            "answer": q.answer,
            "grid": g,
        }
        for q, g in zip(few.questions, picture_grids(few), strict=True)
    ]
    told = []
    for row in rows:
        if row.score is None:
            continue
        method = by_name.get(row.method)
        kept, why_not = [""] * len(questions), ""
        if method is not None:
            try:
                kept = kept_tokens(few, method, row.budget, row.settings)
            except ValueError as error:  # the numbers are there, and what cannot be shown must not take them along
                why_not = str(error)
        # Every answer is in its file by now.
        answers = asking.run(method, row.budget, row.settings).answers
        own = {"method": row.method, "budget": row.budget, "kept": kept, "answers": answers[: len(questions)]}
        told.append(own | ({"why_not": why_not} if why_not else {}))
    return {"scene_side": side, "questions": questions, "rows": told}


def _words(given: list[str]) -> list[str]:
    """Words between commas, of one word or of several."""
    return [word for text in given for word in text.split(",") if word]


def _shares(given: list[str]) -> list[float]:
    try:
        shares = [float(word) for word in _words(given)]
    except ValueError as error:
        raise ValueError(f"--budgets: expected shares of the visual tokens such as 0.5,0.25, got {given}") from error
    if not shares or not all(0 < share <= 1 for share in shares):
        raise ValueError(f"--budgets: expected shares of the visual tokens in (0, 1], got {', '.join(given)}")
    return list(dict.fromkeys(shares))


def _check(questions: int, tune: bool, tune_questions: int, data: str | None, images: str | None) -> None:
    if questions < 1 or tune_questions < 1:
        raise ValueError(f"--questions, --tune-questions: expected at least 1, got {questions}, {tune_questions}")
    if images is not None and data is None:
        raise ValueError("--images: expected --data with it, the file that names the pictures")
    if tune and data is not None:
        raise ValueError(
            "--tune: expected the rendered scenes, which have validation seeds, without --data; choose settings on "
            "other questions of yours and name a YAML file that says them as the method"
        )


def _default_folder(asking: "Asking") -> Path:
    """A folder of these settings, so that other ones do not meet their answers."""
    digest = hashlib.sha256(json_format.dumps(asking.settings).encode()).hexdigest()
    return Path("prune-eval") / f"{Path(asking.name).name.replace(':', '_')}-{digest[:8]}"


def _total(methods: list[Any], budgets: int, questions: int, tune_questions: int) -> int:
    """Questions to answer, all rows together."""
    tried = sum(len(method.candidates) for method in methods if len(method.candidates) > 1)
    return questions * (1 + len(methods) * budgets) + tune_questions * tried * budgets


def _table(rows: "list[Row]") -> Table:
    """One row per method and budget; percent."""
    table = Table("method", title="exact match (%)", box=box.SIMPLE_HEAD)
    for heading in ("budget", "accuracy", "95 % interval", "of unpruned", "tokens a layer", "FLOPs", "against random"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    budget = rows[0].budget
    for row in rows:
        if row.budget != budget or row.method == "random":
            table.add_section()
        budget = row.budget
        table.add_row(escape(row.method), *_cells(row))
    return table


def _cells(row: "Row") -> list[str]:
    from vistok.lvlm.pruning_table import settings_text

    if row.score is None:
        return [f"{row.budget:.0%}", *["-"] * 6, "refused"]
    low, high = row.score.interval
    against = ""
    if row.against_random is not None:
        ends = " to ".join(f"{100 * end:+.1f}" for end in row.against_random.interval)
        against = f"{100 * row.against_random.difference:+.1f} ({ends})"
    return [
        f"{row.budget:.0%}",
        f"{100 * row.score.accuracy:.1f}",
        f"{100 * low:.1f} to {100 * high:.1f}",
        f"{row.of_unpruned:.0%}",
        f"{row.visual_tokens:.1f} ({row.kept:.0%})",
        f"{row.flops_share:.0%}",
        against,
        escape(" ".join(filter(None, [row.verdict, settings_text(row.settings)]))),
    ]


def _refusals(rows: "list[Row]") -> Iterator[str]:
    said: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.refused is not None:
            said.setdefault((row.method, row.refused), []).append(f"{row.budget:.0%}")
    for (method, reason), budgets in said.items():
        yield f"{method} refused at {', '.join(budgets)}: {reason}"


def _explained() -> Iterator[str]:
    yield (
        "against random: points at the same budget on the same questions, with 95 % intervals; wins, loses: all of the "
        "interval is on that side; higher, lower: not all of it; of single kinds one in forty loses by chance"
    )
    yield "FLOPs: of the language model for a prompt, 2 per multiplication and addition, the vision tower left out"


def _plot(rows: "list[Row]", model: str) -> Any:
    from vistok.lvlm.pruning_table import pareto_front

    front, lines = pareto_front(rows), []
    for name in dict.fromkeys(row.method for row in rows[1:]):
        own = [row for row in rows[1:] if row.method == name and row.score is not None]
        points = [
            Point(r.visual_tokens, 100 * r.score.accuracy, *_percent(r), ringed=any(r is one for one in front))
            for r in own
            if r.score is not None
        ]
        if points:
            lines.append(Line(name, points))
    score = rows[0].score
    assert score is not None
    return line_chart(
        lines,
        title=f"{Path(model).name}: accuracy with fewer visual tokens, {score.questions:,} questions",
        x_label=f"visual tokens per layer on average, of {rows[0].visual_tokens:g}",
        y_label="exact match (%), 95 % intervals; rings: Pareto front",
        level=("unpruned", 100 * score.accuracy),
    )


def _percent(row: "Row") -> tuple[float, float]:
    assert row.score is not None
    low, high = row.score.interval
    return 100 * low, 100 * high


def _as_json(row: "Row") -> dict[str, Any]:
    return asdict(row) | {"verdict": row.verdict, "loses_to_random_in": row.loses_in}
