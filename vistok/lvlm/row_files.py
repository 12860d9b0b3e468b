"""New rows in a file of their own: a few megabytes that turn the base model into the trained one, to the bit.

safetensors with "embedding" [n, D], "head" [n, D] if it is not tied, "bias" [n] if there is one; families and strings
in the metadata, so that ids may differ where the file is read. n new rows, D width.
"""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vistok.lvlm.new_rows import Attachment, attach, matrices
from vistok.lvlm.vocabulary import TokenFamily

_FORMAT = "vistok.new_rows.1"


def export_rows(file: str | Path, model: Any, attachment: Attachment) -> None:
    """Write the new rows as they are in the model, whole file or none. Raises: ValueError if there are no new rows."""
    if not attachment.new:
        raise ValueError("export_rows: expected an attachment with new rows, it found all of its strings in the model")
    tensors = {name: matrix[list(attachment.new)].detach().cpu() for name, matrix in matrices(model).items()}
    metadata = {
        "format": _FORMAT,
        "families": json.dumps([asdict(family) for family in attachment.families]),
        "strings": json.dumps(attachment.new_strings),
    }
    partial = f"{file}.tmp.{os.getpid()}"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata)
    os.replace(partial, file)


@torch.no_grad()
def merge_rows(
    file: str | Path, tokenizer: Any, model: Any, *, pad_to_multiple_of: int = 64, reuse_unused: bool = False
) -> Attachment:
    """Attach the families of a file and give their rows the values in it; the result is what `attach` returns.

    Rows of strings that the model has already are overwritten; they count as new, and `detach` puts them back.
    Raises: FileNotFoundError if there is no such file; ValueError if it is none of these, or made for a model of
    another width or with another kind of head; nothing is changed then. Further errors as in `attach`.
    """
    families, strings, rows = _read(Path(file))
    for name, matrix in matrices(model).items():
        if name in rows and rows[name].shape[1:] != matrix.shape[1:]:
            raise ValueError(
                f"{file}: expected {name} rows {list(matrix.shape[1:])} as the model's, got "
                f"{list(rows[name].shape[1:])}"
            )
    if set(rows) != set(matrices(model)):
        raise ValueError(
            f"{file}: expected rows for {', '.join(matrices(model))} as in the model, got {', '.join(sorted(rows))}; a "
            "head that is tied to the embedding has none of its own"
        )
    attachment = attach(tokenizer, model, families, pad_to_multiple_of=pad_to_multiple_of, reuse_unused=reuse_unused)
    ids = [attachment.ids[string] for string in strings]
    attachment = _with_overwritten(attachment, ids, model)
    for name, matrix in matrices(model).items():
        matrix[ids] = rows[name].to(matrix)
    return attachment


def _with_overwritten(attachment: Attachment, ids: list[int], model: Any) -> Attachment:
    """The attachment with those rows among the new ones that were there before, as they still are."""
    started, rows = set(attachment.new), attachment.rows[0]
    there = [number for number in ids if number not in started]
    spare = [number for number in attachment.new if number < rows] + there
    order = sorted(range(len(spare)), key=spare.__getitem__)
    kept = {
        name: torch.cat([attachment.undo.spare[name], matrix[there].detach()])[order]
        for name, matrix in matrices(model).items()
    }
    return replace(attachment, new=tuple(sorted((*attachment.new, *there))), undo=replace(attachment.undo, spare=kept))


def _read(file: Path) -> tuple[list[TokenFamily], list[str], dict[str, Tensor]]:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: expected a file that export_rows wrote, there is none")
    try:
        with safe_open(file, "pt") as content:
            metadata = content.metadata() or {}
            rows = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (no mapping)
    except Exception as error:
        raise ValueError(f"{file}: expected a safetensors file, got {error}") from error
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"{file}: expected new rows of format {_FORMAT}, got {metadata.get('format')!r}")
    families = [_family(record) for record in json.loads(metadata["families"])]
    strings = list(json.loads(metadata["strings"]))
    if any(len(tensor) != len(strings) for tensor in rows.values()):
        raise ValueError(f"{file}: expected {len(strings)} rows, one for each string, got other counts")
    return families, strings, rows


def _family(record: dict[str, Any]) -> TokenFamily:
    lists = {name: tuple(record[name]) for name in ("strings", "begin", "end")}
    return TokenFamily(name=record["name"], row_end=record["row_end"], size_end=record["size_end"], **lists)
