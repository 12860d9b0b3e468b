"""`vistok eval lvlm`: how many questions about pictures a vision-language model answers, by kind."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vistok import tokenizer as make_tokenizer
from vistok.cli._questions import asking_progress, own_questions
from vistok.metrics.accuracy import Accuracy
from vistok.metrics.round_trip import evaluating, round_trip
from vistok.report.json_file import write_json

if TYPE_CHECKING:  # transformers takes seconds to import, and it is an extra
    from vistok.lvlm.evaluation import Ablation, Evaluation, Scores

_WIDTH = 140


def lvlm(
    model: str = "micro_lvlm",
    *,
    questions: int = 2000,
    split: Literal["test", "validation", "heldout"] = "test",
    data: str | None = None,
    images: str | None = None,
    pruner: str | None = None,
    budget: int | float | None = None,
    tokenizer: str | None = None,
    ablate: bool = False,
    batch: int = 32,
    words: int = 8,
    device: str = "cpu",
    json: str | None = None,
) -> None:
    """Ask a vision-language model about pictures; print exact-match accuracy by kind of question.

    Beside it stand the best constant answer of each kind, and what the model says when it is shown a plain grey.

    Args:
        model: micro_lvlm, a folder of a LLaVA-family model with its processor, or hf:owner/name[@revision].
        questions: how many; about rendered scenes they are always the same ones, of equally frequent kinds.
        split: of the scenes; heldout has pairs of colour and shape that no other split shows.
        data: questions of your own instead, in LLaVA's conversation format, as JSON Lines or a JSON list.
        images: folder that the pictures of --data are relative to, if not that of the file.
        pruner: as `vistok list` shows them; takes visual tokens away while the model answers.
        budget: what the pruner keeps, a number of tokens or a fraction; some have a schedule of their own.
        tokenizer: put this tokenizer's reconstruction of every picture in front of the model.
        ablate: keep 50, 25 and 10 % of the visual tokens by simple rules, or those of another picture.
        batch: questions at a time.
        words: tokens that an answer may have.
        device: cpu, cuda and so on.
        json: file to write all numbers to.
    """
    _check(questions, data, images, pruner, budget, tokenizer, ablate)
    try:
        from vistok.lvlm import evaluation, load, prompting, scene_questions
    except ImportError as error:
        raise ImportError(f"eval lvlm needs the extra: pip install 'vistok[lvlm]' ({error})") from error
    host = load.load_lvlm(model, device=device)
    side = scene_questions.scene_side(host[1])
    asked = (
        scene_questions.scene_questions(split, questions) if data is None else own_questions(data, images, questions)
    )
    fixed = scene_questions.scene_questions("validation", questions) if data is None else asked
    options: dict[str, Any] = {"constants": evaluation.best_constants(fixed), "batch": batch, "max_new_tokens": words}
    began = time.perf_counter()
    result: dict[str, Any]
    if ablate:
        picture, shown = scene_questions.scene_picture(side), scene_questions.scene_foreground(side)
        with asking_progress(len(asked)) as advance:
            ablation = evaluation.evaluate_ablations(*host, asked, picture, shown, **options, on_batch=advance)
        table, notes, result = _ablation_table(ablation), _ablation_notes(ablation), _ablation_json(ablation)
    else:
        read = scene_questions.scene_picture(side) if data is None else prompting.as_picture
        options |= {"pruner": pruner, "budget": budget}
        with _through(tokenizer, read) as seen, asking_progress(2 * len(asked)) as advance:
            found = evaluation.evaluate(*host, asked, seen, **options, on_batch=advance)
        table, notes, result = _table(found), _notes(found, data), _json(found)
    seconds = time.perf_counter() - began
    console = Console()
    if ablate:
        # A terminal had better wrap the lines of this table than lose its columns.
        console.width = max(console.width, _WIDTH)
    console.print(table)
    for line in [*notes, f"{seconds:.0f} s"]:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    if json is not None:
        given = {"model": model, "questions": questions, "split": split if data is None else None, "data": data}
        given |= {"pruner": pruner, "budget": budget, "tokenizer": tokenizer, "ablate": ablate}
        given |= {"batch": batch, "words": words, "device": device, "side": side if data is None else None}
        write_json(json, result | {"settings": given, "seconds": round(seconds, 1)})


def _check(
    questions: int,
    data: str | None,
    images: str | None,
    pruner: str | None,
    budget: int | float | None,
    tokenizer: str | None,
    ablate: bool,
) -> None:
    if questions < 1:
        raise ValueError(f"--questions: expected at least 1, got {questions}")
    if images is not None and data is None:
        raise ValueError("--images: expected --data with it, the file that names the pictures")
    if budget is not None and pruner is None:
        raise ValueError("--budget: expected --pruner with it; `vistok list` shows the pruners")
    if ablate and (data, pruner, tokenizer) != (None, None, None):
        raise ValueError("--ablate: expected the rendered scenes, without --data, --pruner and --tokenizer")


@contextmanager
def _through(name: str | None, read: Callable[[Any], Image.Image]) -> Iterator[Callable[[Any], Image.Image]]:
    """What opens pictures, with a tokenizer's round trip behind it."""
    if name is None:
        yield read
        return
    tokenizer: Any = make_tokenizer(name, pretrained=True)

    def reconstructed(picture: Any) -> Image.Image:
        image = round_trip(tokenizer, tokenizer.preprocess(read(picture))).image
        return Image.fromarray((image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())

    with evaluating(tokenizer):
        yield reconstructed


def _table(found: "Evaluation") -> Table:
    """One row per kind, then all questions; percent."""
    table = Table("kind", title="exact match (%)")
    for heading in ("questions", "accuracy", "95 % interval", "blind", "grey"):
        table.add_column(heading, justify="right")
    for kind, scores in found.kinds.items():
        table.add_row(escape(kind), *_cells(scores))
    table.add_section()
    table.add_row("all", *_cells(found.overall), style="bold")
    return table


def _cells(scores: "Scores") -> list[str]:
    low, high = scores.interval
    return [
        f"{scores.questions:,}",
        f"{100 * scores.accuracy:.1f}",
        f"{100 * low:.1f} to {100 * high:.1f}",
        f"{100 * scores.blind:.1f}",
        f"{100 * scores.grey:.1f}",
    ]


def _notes(found: "Evaluation", data: str | None) -> Iterator[str]:
    where = "validation questions" if data is None else "the same questions, so an upper bound"
    yield f"blind: the best constant answer of each kind, chosen on {where}; grey: the model, shown a plain grey"
    if found.visual_tokens is not None:
        yield f"{found.visual_tokens:.1f} visual tokens per layer on average"


def _json(found: "Evaluation") -> dict[str, Any]:
    kinds = {kind: asdict(scores) for kind, scores in found.kinds.items()}
    return asdict(found.overall) | {"kinds": kinds, "visual_tokens": found.visual_tokens}


def _ablation_table(found: "Ablation") -> Table:
    """One row per setting, one column per kind; whole percent."""
    table = Table(title="exact match (%)", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column("visual tokens", no_wrap=True)
    table.add_column("all", justify="right", style="bold")
    kinds = list(found.kinds["all"])
    for kind in kinds:
        table.add_column(kind.replace("_", "\n"), justify="right", no_wrap=True)
    for name, overall in found.overall.items():
        table.add_row(name, _percent(overall), *(_percent(found.kinds[name][kind]) for kind in kinds))
    return table


def _percent(value: Accuracy) -> str:
    return f"{100 * value.accuracy:.0f}"


def _ablation_notes(found: "Ablation") -> Iterator[str]:
    yield "points above random at the same number of tokens, on the same questions, with 95 % intervals:"
    for name, difference in found.differences.items():
        low, high = difference.interval
        yield f"  {name:14} {100 * difference.difference:+5.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _ablation_json(found: "Ablation") -> dict[str, Any]:
    settings = {
        name: asdict(overall) | {"kinds": {kind: asdict(each) for kind, each in found.kinds[name].items()}}
        for name, overall in found.overall.items()
    }
    differences = {name: asdict(each) for name, each in found.differences.items()}
    return asdict(found.overall["all"]) | {"ablations": settings, "above_random": differences}
