"""What an explainability compressor learns from: first-layer attention and relevance of every picture's visual tokens.

A language model is asked many questions; those that it answers correctly are kept, as safetensors files of some hundred
questions each, written whole or not at all. So a run that is stopped goes on behind its last file. V visual tokens.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from vistok.data.shard import write_atomic
from vistok.lvlm.relevance import VisualRow, first_layer_attention, relevance
from vistok.train.conversations import Sample, model_inputs

_log = logging.getLogger(__name__)


class Pairs(NamedTuple):
    """attention, relevance: [V] float32 of every question; groups [S] int64, equal for questions about one picture."""

    attention: list[Tensor]
    relevance: list[Tensor]
    groups: Tensor


def cached_pairs(
    folder: Path,
    origin: dict[str, Any],
    samples: Callable[[], Iterable[Sample]],
    load: Callable[[], tuple[Any, Any]],
    *,
    wanted: int,
    batch: int,
    per_file: int = 256,
) -> Pairs:
    """The pairs in `folder`, made first as far as they are missing; at most `wanted`.

    origin: what they depend on, JSON; with "prompt" and "answer" as `model_inputs` takes them. load: model and
    processor, called only if there is something to make. batch: questions at once. per_file: questions
    whose pairs are written together.
    Raises: ValueError if the folder holds pairs of another origin, or the model answers no question correctly.
    """
    record = folder / "pairs.json"
    stored = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {"origin": origin}
    if stored["origin"] != origin:
        raise ValueError(f"{folder}: expected pairs of {origin}, got those of {stored['origin']}; choose another `out`")
    if not stored.get("complete"):
        _write(record, {"origin": origin})
        asked = _make(folder, origin, samples(), load, wanted, batch, per_file)
        _write(record, {"origin": origin, "complete": True, "asked": asked})
    return _read(folder, wanted)


def _write(record: Path, content: dict[str, Any]) -> None:
    write_atomic(record, (json.dumps(content, indent=2) + "\n").encode())


def _make(
    folder: Path,
    origin: dict[str, Any],
    samples: Iterable[Sample],
    load: Callable[[], tuple[Any, Any]],
    wanted: int,
    batch: int,
    per_file: int,
) -> int:
    """Ask until `wanted` answers were correct or no question is left; returns how many were asked."""
    loaded: tuple[Any, Any] | None = None
    found = asked = 0
    for number, some in enumerate(_in_groups(samples, per_file)):
        file = folder / f"{number:05d}.safetensors"
        if not file.is_file():
            loaded = load() if loaded is None else loaded
            parts = [_ask(*loaded, part, origin["prompt"], origin["answer"]) for part in _in_groups(some, batch)]
            content = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            write_atomic(file, save(content))
        found += len(load_file(file)["lengths"])
        asked += len(some)
        _log.info("%s: %d of %d questions answered correctly", folder, found, asked)
        if found >= wanted:
            break
    if not found:
        raise ValueError(
            f"{folder}: expected a model that answers some of the {asked} questions word for word, it answered none; "
            "see to `prompt` and `answer`, and to what the model says"
        )
    return asked


def _in_groups(samples: Iterable[Sample], size: int) -> Iterator[tuple[Sample, ...]]:
    rest = iter(samples)
    while group := tuple(islice(rest, size)):
        yield group


def _ask(model: Any, processor: Any, samples: tuple[Sample, ...], prompt: str | None, answer: str) -> dict[str, Tensor]:
    """The columns of one file for some questions: those that are answered correctly, one after the other."""
    inputs, labels = model_inputs(processor, samples, prompt, answer)
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    labels = labels.to(model.device)
    end = processor.tokenizer.eos_token_id
    target = relevance(model, inputs, labels, skip=() if end is None else (end,))
    attention = first_layer_attention(model, inputs, labels)
    # Relevance that is zero everywhere says nothing about what to keep.
    good = (target.correct & (target.visual.values.sum(1) > 0)).cpu()
    groups = torch.tensor([_group(sample.group) for sample in samples])
    columns = {"attention": _flat(attention, good), "relevance": _flat(target.visual, good)}
    return columns | {"lengths": attention.lengths.cpu()[good], "groups": groups[good]}


def _flat(row: VisualRow, good: Tensor) -> Tensor:
    values: Tensor = row.values.cpu()[good][row.mask.cpu()[good]]
    return values


def _group(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")


def _read(folder: Path, wanted: int) -> Pairs:
    files = [load_file(file) for file in sorted(folder.glob("*.safetensors"))]
    rows = {
        name: [row for file in files for row in file[name].split(file["lengths"].tolist())][:wanted]
        for name in ("attention", "relevance")
    }
    return Pairs(rows["attention"], rows["relevance"], torch.cat([file["groups"] for file in files])[:wanted])
