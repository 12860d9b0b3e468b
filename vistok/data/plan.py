"""What an encode run will do, fixed before it starts: which pictures, in which shards, with which settings.

The same inputs, settings and libraries give the same plan. Its hash marks every shard; a folder holds one plan.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import PIL
import torch
from PIL import features
from torch import nn

from vistok.config import check_settings
from vistok.data.images import list_images
from vistok.data.shard import FORMAT_VERSION, write_atomic
from vistok.layers.preprocess import Preprocess
from vistok.protocols import Tokenizer
from vistok.weights import fingerprint

_EMBED_DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class Picture:
    """One input: key = path below the encoded folder; size in bytes and time of last change in ns."""

    key: str
    path: Path
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class EncodeSettings:
    """Everything that may change the bytes of a store, all of it part of the plan.

    batch: pictures of one size per forward pass. batch_pixels: pixels that may wait for their batch to fill.
    shard_samples: pictures per shard. threads: torch threads of one worker. columns: "indices", "embeds" or both;
    None = indices if the tokenizer is discrete, else embeds. options: for `tokenizer.encode`, e.g. {"tile": 512}.
    """

    batch: int = 8
    batch_pixels: int = 1 << 25
    shard_samples: int = 1000
    threads: int = 2
    columns: tuple[str, ...] | None = None
    embeds_dtype: str = "float16"
    device: str = "cpu"
    split: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises: ValueError naming the setting that is out of range."""
        for name in ("batch", "batch_pixels", "shard_samples", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"encode: expected {name} >= 1, got {getattr(self, name)}")
        if self.columns is not None and (not self.columns or set(self.columns) - {"indices", "embeds"}):
            raise ValueError(f"encode: expected columns out of 'indices' and 'embeds', got {list(self.columns)}")
        if self.embeds_dtype not in _EMBED_DTYPES:
            raise ValueError(f"encode: expected embeds_dtype one of {_EMBED_DTYPES}, got {self.embeds_dtype!r}")


@dataclass(frozen=True)
class Plan:
    """pictures sorted by key; record: the fields that are hashed and kept in dataset.json."""

    pictures: tuple[Picture, ...]
    settings: EncodeSettings
    record: dict[str, Any]

    @property
    def hash(self) -> str:
        """sha256 (hex) of the record."""
        return hashlib.sha256(json.dumps(self.record, sort_keys=True).encode()).hexdigest()

    @property
    def num_shards(self) -> int:
        """How many shards the pictures are cut into."""
        return -(-len(self.pictures) // self.settings.shard_samples)

    def shard(self, shard: int) -> tuple[Picture, ...]:
        """The pictures of one shard."""
        size = self.settings.shard_samples
        return self.pictures[shard * size : (shard + 1) * size]


def tokenizer_fingerprint(tokenizer: Tokenizer | nn.Module) -> str:
    """sha256 (hex) of a tokenizer's settings and weights; its name does not count.

    Raises: TypeError if it is no nn.Module.
    """
    if not isinstance(tokenizer, nn.Module):
        raise TypeError(f"fingerprint: expected a tokenizer that is an nn.Module, got {type(tokenizer).__name__}")
    settings: Any = getattr(tokenizer, "_hub_mixin_config", {})
    return fingerprint(tokenizer, settings)


def make_plan(tokenizer: Tokenizer, source: str | Path, settings: EncodeSettings | None = None) -> Plan:
    """Plan the encoding of a folder of pictures (or of one).

    Raises: FileNotFoundError, ValueError as `list_images`; TypeError for an option that `tokenizer.encode` lacks.
    """
    settings = settings or EncodeSettings()
    pictures = _pictures(Path(source))
    name = tokenizer.spec.name
    check_settings(f"{name}.encode", tokenizer.encode, settings.options)
    record = {
        "inputs": {"count": len(pictures), "sha256": _inputs_hash(pictures)},
        "tokenizer": name,
        "fingerprint": tokenizer_fingerprint(tokenizer),
        "transform": str(getattr(tokenizer, "preprocess", Preprocess())),
        "columns": _columns(tokenizer.spec.codebook_sizes, settings),
        "batch": settings.batch,
        "batch_pixels": settings.batch_pixels,
        "shard_samples": settings.shard_samples,
        "threads": settings.threads,
        "device": settings.device,
        "options": settings.options,
        "split": settings.split,
        "decoder": f"Pillow {PIL.__version__}, libjpeg-turbo {features.version_feature('libjpeg_turbo')}",
        "torch": str(torch.__version__),
    }
    return Plan(pictures, settings, record)


def claim_folder(plan: Plan, out: Path) -> None:
    """Write dataset.json into a new store, or check that the one there is of the same plan.

    Raises: ValueError naming every field that differs, or if the folder holds something else.
    """
    file = out / "dataset.json"
    dataset = {
        "format": "vistok-store",
        "version": FORMAT_VERSION,
        "plan_hash": plan.hash,
        "num_shards": plan.num_shards,
        **plan.record,
    }
    if not file.exists():
        if out.exists() and not out.is_dir():
            raise ValueError(f"{out}: expected a folder for the store, got a file")
        if out.exists() and any(not entry.name.startswith(file.name) for entry in out.iterdir()):
            raise ValueError(f"{out}: expected a new or empty folder or a token store, got other files; choose another")
        write_atomic(file, (json.dumps(dataset, indent=2) + "\n").encode())
    dataset = json.loads(json.dumps(dataset))  # lists for tuples, as in the file
    there = json.loads(file.read_text(encoding="utf-8"))
    if there.get("plan_hash") != plan.hash:
        raise ValueError(
            f"{out} was made by another plan: {'; '.join(_differences(there, dataset))}. "
            "Give the same settings and pictures, or another folder"
        )


def _pictures(source: Path) -> tuple[Picture, ...]:
    root = source.parent if source.is_file() else source
    found = []
    for path in list_images(source):
        state = path.stat()
        # Names that are not UTF-8 are spelled out, because parquet holds nothing else.
        key = os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "backslashreplace")
        found.append(Picture(key, path, state.st_size, state.st_mtime_ns))
    return tuple(sorted(found, key=lambda picture: picture.key))


def _inputs_hash(pictures: Iterable[Picture]) -> str:
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(json.dumps([picture.key, picture.size, picture.mtime_ns]).encode())
    return digest.hexdigest()


def _columns(codebook_sizes: tuple[int, ...], settings: EncodeSettings) -> dict[str, str]:
    ids = "uint16" if codebook_sizes and max(codebook_sizes) <= 1 << 16 else "int32"
    dtypes = {"indices": ids, "embeds": settings.embeds_dtype}
    wanted = settings.columns or (("indices",) if codebook_sizes else ("embeds",))
    return {name: dtype for name, dtype in dtypes.items() if name in wanted}


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    fields = sorted({*there, *here} - {"plan_hash"})
    return [
        f"{name}: there {there.get(name)!r}, here {here.get(name)!r}"
        for name in fields
        if there.get(name) != here.get(name)
    ]
