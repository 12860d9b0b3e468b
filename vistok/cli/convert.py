"""Write the checkpoint that a tokenizer's authors published as safetensors with its settings, once and for all."""

import os
import shutil
from pathlib import Path
from typing import Any

from vistok.cli._recognise import recognise
from vistok.registry import create
from vistok.report.json_file import write_json


def convert(
    official: str,
    out: str,
    *,
    as_: str | None = None,
    settings: dict[str, Any] | None = None,
    trust: bool = False,
    json: str | None = None,
) -> None:
    """Write an authors' checkpoint to a folder of model.safetensors and config.json, which `checkpoint=` takes.

    Every tensor is accounted for: one that is missing, surplus or of another shape is an error that names it. Nothing
    is written unless all is well, and nothing is overwritten.

    Args:
        official: file, folder, or hf:owner/name[/folder][@revision].
        out: folder to write, which must not exist.
        as: preset to load it as, one of `vistok list tokenizer`; found by its tensors if only one has them.
        settings: JSON of settings that are not the preset's, such as the sizes of another model of the family.
        trust: read TorchScript too, which holds programs; only from those you trust.
        json: file to write what was converted to.
    """
    folder = Path(out)
    if folder.exists():
        raise ValueError(f"{folder} exists already, and convert overwrites nothing; give another folder or remove it")
    name = recognise(official, trust=trust, settings=settings) if as_ is None else as_
    model: Any = create("tokenizer", name, checkpoint=official, trust=trust, **(settings or {}))
    partial = folder.with_name(f"{folder.name}.tmp.{os.getpid()}")
    try:
        model.save_pretrained(partial)
        os.rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    tensors = model.state_dict()
    values = sum(value.numel() for value in tensors.values())
    print(f"{folder}: {name}, {len(tensors)} tensors, {values:,} values")
    print(f"read it with vistok.tokenizer({name!r}, checkpoint={str(folder)!r})")
    if json is not None:
        write_json(json, {"preset": name, "out": str(folder), "tensors": len(tensors), "values": values})


COMMAND = convert
