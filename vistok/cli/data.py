"""Fetch or make the data that models train and are measured on."""

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from vistok.report.json_file import write_json


def photos(folder: str, packages: str | None = None) -> None:
    """Fetch the training photographs, check their sha256, and write DATA_LICENSES.md beside them.

    Args:
        folder: where to write; files that are there already and intact are kept.
        packages: folder with the Debian packages, if apt-get should not fetch them.
    """
    from vistok.data.photos import fetch_photos, photo_list

    total = sum(len(listed) for listed in photo_list().values())
    console = Console(stderr=True)
    for _ in track(fetch_photos(folder, packages), "photographs", total=total, console=console):
        pass
    console.print(f"{total} photographs in {folder}, authors and licences in DATA_LICENSES.md")


def fashion_mnist(folder: str, packages: str | None = None) -> None:
    """Fetch Fashion-MNIST, check the sha256 of its four files, and write DATA_LICENSES.md beside them.

    Args:
        folder: where to write; files that are there already and intact are kept.
        packages: folder with the Debian package, if apt-get should not fetch it.
    """
    from vistok.data.fashion_mnist import fetch_fashion_mnist

    names = list(fetch_fashion_mnist(folder, packages))
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        f"{len(names)} files in {escape(folder)}, author and licence in DATA_LICENSES.md"
    )


def scenes(
    out: str,
    *,
    count: int,
    split: str = "train",
    size: int = 96,
    first_seed: int = 0,
    photographs: str | None = None,
    questions_per_scene: int = 4,
    depth: bool = False,
    masks: bool = False,
    json: str | None = None,
) -> None:
    """Render scenes with known answers: images, LLaVA conversations (JSONL) and a Hugging Face data set.

    The same command goes on where an earlier one stopped; the same options give the same bytes.

    Args:
        out: folder to write: images/, conversations.jsonl and dataset/ (Parquet, for datasets.load_dataset).
        count: how many scenes.
        split: train, validation, test, or heldout, whose scenes show pairs of colour and shape that no other has.
        size: side of the pictures in pixels, 64 to 336.
        first_seed: number of the first scene in the split.
        photographs: folder of pictures for the backgrounds; left out = drawn ones.
        questions_per_scene: how many; kinds and answers are balanced over the whole file.
        depth: also write depth/, 16-bit PNG files in millimetres; the data set has them in any case.
        masks: also write masks/, 8-bit PNG files (0 background, 1 the nearest thing, 2 the next).
        json: file to write the numbers to.
    """
    from dataclasses import asdict

    from vistok.cli.encode import image_progress
    from vistok.data.scenes.write import SceneSettings, write_scenes

    settings = SceneSettings(count, split, first_seed, size, questions_per_scene, depth, masks)
    with image_progress() as progress:
        task = progress.add_task("rendering", total=count)
        summary = write_scenes(out, settings, photographs, on_scenes=lambda done: progress.update(task, advance=done))
    table = Table("kind", "questions", "answers")
    for kind, total in summary.kinds.items():
        table.add_row(kind, str(total), ", ".join(f"{name} {n}" for name, n in summary.answers[kind].items()))
    Console(highlight=False).print(table)
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        f"{escape(out)}: {summary.scenes} scenes, {summary.questions} questions; "
        f"{summary.rendered} scenes rendered in {summary.seconds:.1f} s"
    )
    if json is not None:
        write_json(json, {"out": out, **asdict(settings), **asdict(summary)})


COMMAND = {"photos": photos, "fashion_mnist": fashion_mnist, "scenes": scenes}
