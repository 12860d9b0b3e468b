"""What an encode run will do, fixed before it starts: which pictures, in which shards, with which settings.

The same inputs, settings and libraries give the same plan. Its hash marks every shard; a folder holds one plan.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import nn

from vistok.config import check_settings
from vistok.data.decode_image import MAX_PIXELS, decoder_name
from vistok.data.inputs.entry import Entry, Input
from vistok.data.inputs.open import open_input
from vistok.data.records import FORMAT
from vistok.data.shard import FORMAT_VERSION, ROW_SCHEMA
from vistok.layers.preprocess import Preprocess
from vistok.protocols import Tokenizer
from vistok.weights import fingerprint

_EMBED_DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class EncodeSettings:
    """Everything that may change the bytes of a store, all of it part of the plan.

    batch: pictures of one size per forward pass. batch_pixels: pixels that may wait for their batch to fill.
    max_pixels: a picture of more is an error. shard_samples: pictures per shard. threads: torch threads of one worker.
    seed: with a picture's key the only source of randomness. columns: "indices", "embeds" or both; None = indices if
    the tokenizer is discrete, else embeds. options: for `tokenizer.encode`, e.g. {"tile": 512}.
    """

    batch: int = 8
    batch_pixels: int = 1 << 22
    max_pixels: int = MAX_PIXELS
    shard_samples: int = 1000
    threads: int = 2
    seed: int = 0
    columns: tuple[str, ...] | None = None
    embeds_dtype: str = "float16"
    device: str = "cpu"
    split: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises: ValueError naming the setting that is out of range."""
        for name in ("batch", "batch_pixels", "max_pixels", "shard_samples", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"encode: expected {name} >= 1, got {getattr(self, name)}")
        if self.columns is not None and (not self.columns or set(self.columns) - {"indices", "embeds"}):
            raise ValueError(f"encode: expected columns out of 'indices' and 'embeds', got {list(self.columns)}")
        if self.embeds_dtype not in _EMBED_DTYPES:
            raise ValueError(f"encode: expected embeds_dtype one of {_EMBED_DTYPES}, got {self.embeds_dtype!r}")


@dataclass(frozen=True)
class Plan:
    """entries: all pictures of `input` in its order; fields: its own columns; record: the settings that are hashed."""

    input: Input
    entries: tuple[Entry, ...]
    fields: pa.Schema
    settings: EncodeSettings
    record: dict[str, Any]

    @property
    def hash(self) -> str:
        """sha256 (hex) of the record."""
        return hashlib.sha256(json.dumps(self.record, sort_keys=True).encode()).hexdigest()

    @property
    def dataset(self) -> dict[str, Any]:
        """What dataset.json says."""
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "plan_hash": self.hash,
            "num_shards": self.num_shards,
            **self.record,
        }

    @property
    def num_shards(self) -> int:
        """How many shards the pictures are cut into."""
        return -(-len(self.entries) // self.settings.shard_samples)

    def shard(self, shard: int) -> tuple[Entry, ...]:
        """The pictures of one shard."""
        size = self.settings.shard_samples
        return self.entries[shard * size : (shard + 1) * size]

    @property
    def row_schema(self) -> pa.Schema:
        """Columns of a shard's parquet file: the store's own and those of the input."""
        return pa.schema([*ROW_SCHEMA, *self.fields])


def tokenizer_fingerprint(tokenizer: Tokenizer | nn.Module) -> str:
    """sha256 (hex) of a tokenizer's settings and weights; its name does not count.

    Raises: TypeError if it is no nn.Module.
    """
    if not isinstance(tokenizer, nn.Module):
        raise TypeError(f"fingerprint: expected a tokenizer that is an nn.Module, got {type(tokenizer).__name__}")
    settings: Any = getattr(tokenizer, "_hub_mixin_config", {})
    return fingerprint(tokenizer, settings)


def make_plan(tokenizer: Tokenizer, source: str | Path | Input, settings: EncodeSettings | None = None) -> Plan:
    """Plan the encoding of an input, or of what `open_input` finds at a path.

    Raises: FileNotFoundError, ValueError as `open_input`, or if there is no picture; TypeError for an option that
    `tokenizer.encode` lacks.
    """
    settings = settings or EncodeSettings()
    given = open_input(source) if isinstance(source, str | Path) else source
    entries, fields = tuple(given.entries()), given.fields
    if not entries:
        raise ValueError(f"{source}: expected at least one picture, found none")
    name = tokenizer.spec.name
    check_settings(f"{name}.encode", tokenizer.encode, settings.options)
    record = {
        "inputs": {"count": len(entries), "sha256": _inputs_hash(entries)},
        "fields": {field.name: str(field.type) for field in fields},
        "tokenizer": name,
        "fingerprint": tokenizer_fingerprint(tokenizer),
        "transform": str(getattr(tokenizer, "preprocess", Preprocess())),
        "columns": _columns(tokenizer.spec.codebook_sizes, settings),
        "batch": settings.batch,
        "batch_pixels": settings.batch_pixels,
        "max_pixels": settings.max_pixels,
        "shard_samples": settings.shard_samples,
        "threads": settings.threads,
        "seed": settings.seed,
        "device": settings.device,
        "options": settings.options,
        "split": settings.split,
        "decoder": ", ".join(filter(None, (decoder_name(), getattr(given, "decoder", "")))),
        "torch": str(torch.__version__),
    }
    return Plan(given, entries, fields, settings, record)


def _inputs_hash(entries: Iterable[Entry]) -> str:
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(json.dumps(astuple(entry)).encode())
    return digest.hexdigest()


def _columns(codebook_sizes: tuple[int, ...], settings: EncodeSettings) -> dict[str, str]:
    ids = "uint16" if codebook_sizes and max(codebook_sizes) <= 1 << 16 else "int32"
    dtypes = {"indices": ids, "embeds": settings.embeds_dtype}
    wanted = settings.columns or (("indices",) if codebook_sizes else ("embeds",))
    return {name: dtype for name, dtype in dtypes.items() if name in wanted}
