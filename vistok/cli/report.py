"""Show token stores, training runs and evaluations as one HTML file that needs no server."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from vistok.report.page import Section
    from vistok.report.store_pictures import Decoder

_SAMPLES = 12
_MEGABYTE = 1_000_000


def report(
    sources: list[str],
    *,
    out: str = "report.html",
    images: str | None = None,
    tokenizer: str | None = None,
    checkpoint: str | None = None,
    samples: int = _SAMPLES,
    max_mb: int = 20,
    title: str | None = None,
) -> None:
    """Write what is known of the sources into one file: pictures, token maps, code usage, curves, sortable tables.

    A source is a token store (a folder or URL that `vistok encode` wrote), a training run (the folder of `vistok
    train`), or an evaluation: a file that `--json` wrote, or the folder of `vistok eval prune` or `vistok compare`.

    Args:
        sources: stores, runs and evaluations, one or several.
        out: the file, also -o.
        images: what a store was encoded from, to show originals beside reconstructions; as SRC of `vistok encode`.
        tokenizer: name of the tokenizer that made a store, if not the one it names.
        checkpoint: file, folder or hf:owner/name with the weights that a store was encoded with.
        samples: pictures of each source, 0 for none.
        max_mb: megabytes that the pictures may take, all sources together.
        title: heading of the page.
    """
    from vistok.report.page import write_page

    if not sources:
        raise ValueError("report: expected a token store, a training run or an evaluation, got none")
    if samples < 0 or max_mb < 1:
        raise ValueError(f"report: expected --samples >= 0 and --max-mb >= 1, got {samples} and {max_mb}")
    if Path(out).resolve() in {Path(source).resolve() for source in sources}:
        raise ValueError(f"report: expected --out to be another file than the sources, got {out}")
    kinds = [_kind(source) for source in sources]
    room = max_mb * _MEGABYTE // len(sources)
    sections = [
        _section(source, kind, images, tokenizer, checkpoint, samples, room)
        for source, kind in zip(sources, kinds, strict=True)
    ]
    size = write_page(out, title or _title(sections), sections)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{out}: {len(sections)} sections, {size / _MEGABYTE:.1f} MB", markup=False)


def _kind(source: str) -> str:
    """What a source is. Raises: FileNotFoundError, ValueError naming what was expected."""
    from vistok.data.store_files import is_url
    from vistok.report.eval_section import RESULT
    from vistok.report.run_section import LOG

    path = Path(source)
    if is_url(source) or (path / "dataset.json").is_file():
        return "store"
    if not path.exists():
        raise FileNotFoundError(
            f"no such file or folder: {source}; expected a token store, a training run or an evaluation's JSON file"
        )
    if (path / LOG).is_file():
        return "run"
    if (path / RESULT).is_file() or path.suffix.lower() == ".json":
        return "eval"
    raise ValueError(
        f"{source}: expected a token store (with dataset.json), a training run (with {LOG}) or an evaluation (a .json "
        f"file, or a folder with {RESULT}), found none of them"
    )


def _section(
    source: str,
    kind: str,
    images: str | None,
    tokenizer: str | None,
    checkpoint: str | None,
    samples: int,
    room: int,
) -> "Section":
    if kind == "run":
        from vistok.report.run_section import run_section

        return run_section(Path(source))
    if kind == "eval":
        from vistok.report.eval_section import RESULT, eval_section

        path = Path(source)
        return eval_section(path / RESULT if path.is_dir() else path, samples, room)
    from vistok.report.originals import Originals
    from vistok.report.store_section import store_section

    originals = None if images is None else Originals(images)
    return store_section(source, _decoder(source, tokenizer, checkpoint), originals, samples, room)


def _decoder(source: str, tokenizer: str | None, checkpoint: str | None) -> "Decoder":
    """The tokenizer of a store: an error if it was named and is another, a reason if it merely cannot be found."""
    from vistok.cli.encode import load_tokenizer
    from vistok.data.store import TokenStore
    from vistok.report.store_pictures import Decoder

    store = TokenStore(source)
    try:
        model = load_tokenizer(tokenizer or store.tokenizer, checkpoint)
        store.check_tokenizer(model)
    except (ValueError, KeyError, TypeError, OSError, ImportError) as error:
        if tokenizer is not None or checkpoint is not None:
            raise
        return Decoder(None, str(error.args[0]) if isinstance(error, KeyError) else str(error))
    return Decoder(model)


def _title(sections: "list[Section]") -> str:
    names = [section.title for section in sections]
    return names[0] if len(names) == 1 else f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"


COMMAND = report
