"""A token store back to pictures."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from vistok.cli.encode import image_progress, load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from vistok.data.store import TokenStore


def decode(
    store: str,
    out: str,
    *,
    tokenizer: str | None = None,
    checkpoint: str | None = None,
    batch: int = 8,
    overwrite: bool = False,
) -> None:
    """Decode every sample of a token store into one PNG named by its key.

    Args:
        store: folder that `vistok encode` made.
        out: folder for the pictures.
        tokenizer: name; the store's own if left out.
        checkpoint: file, folder or hf:owner/name with the weights that the store was encoded with.
        batch: pictures of one size that are decoded together.
        overwrite: replace files that are there already.
    """
    import torch

    from vistok.data.store import TokenStore

    if batch < 1:
        raise ValueError(f"decode: expected batch >= 1, got {batch}")
    tokens = TokenStore(store)
    model = load_tokenizer(tokenizer or tokens.tokenizer, checkpoint)
    tokens.check_tokenizer(model)
    folder = Path(out)
    files = [folder / name for name in picture_names(tokens.keys)]
    there = [file for file in files if file.exists()]
    if there and not overwrite:
        raise FileExistsError(f"{there[0]} exists ({len(there)} such files); choose another folder or give --overwrite")
    with image_progress() as progress, torch.inference_mode():
        task = progress.add_task("decoding", total=len(tokens))
        for samples in _batches(tokens, batch):
            found = tokens[samples]
            for sample, image in zip(samples, model.decode(found), strict=True):  # type: ignore[arg-type]
                _write_png(image, files[sample])
            progress.update(task, advance=len(samples))
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"{len(files)} pictures in {escape(out)}")


def picture_names(keys: Sequence[str]) -> list[str]:
    """A PNG path for each key: "a/cat.jpg" -> "a/cat.png", or "a/cat.jpg.png" where "a/cat.png" would be taken twice.

    Raises: ValueError for a key that leads out of the folder, or if two keys still want one file.
    """
    for key in keys:
        if not key or PurePosixPath(key).is_absolute() or ".." in PurePosixPath(key).parts or "\0" in key:
            raise ValueError(f"expected keys that are paths below a folder, got {key!r}")
    short = [str(PurePosixPath(key).with_suffix(".png")) for key in keys]
    taken = _counts(short)
    names = [name if taken[name.casefold()] == 1 else f"{key}.png" for key, name in zip(keys, short, strict=True)]
    taken = _counts(names)
    twice = [key for key, name in zip(keys, names, strict=True) if taken[name.casefold()] > 1]
    if twice:
        raise ValueError(f"expected one file per sample, these would share one: {', '.join(twice[:4])}")
    return names


def _counts(names: Sequence[str]) -> dict[str, int]:
    # Two names that differ in case only are one file on some systems.
    counts: dict[str, int] = {}
    for name in names:
        counts[name.casefold()] = counts.get(name.casefold(), 0) + 1
    return counts


def _batches(tokens: "TokenStore", batch: int) -> Iterator[list[int]]:
    def shape(position: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        row = tokens.rows[position]
        return tuple(row["grid"]), tuple(row["image_size"])

    for _, run in groupby(sorted(range(len(tokens)), key=shape), key=shape):
        members = list(run)
        yield from (members[start : start + batch] for start in range(0, len(members), batch))


def _write_png(image: "Tensor", file: Path) -> None:
    from PIL import Image

    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.part")
    try:
        Image.fromarray(pixels).save(partial, format="PNG")
        partial.replace(file)
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()


COMMAND = decode
