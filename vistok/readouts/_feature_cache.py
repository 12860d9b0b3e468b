"""What a frozen backbone makes of a data set, worked out once: legal because it never changes.

A folder of safetensors shards, one per batch, each written whole or not at all, and `cache.json`, which says of which
weights they are and, at the end, how many there are. A run that was cut short goes on behind its last shard.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vistok.readouts._blocks import Kept
from vistok.readouts._captured import Captured
from vistok.weights import fingerprint

What = Literal["features", "kv"]
# Settings of modules that do not change what comes out.
_HOW = {"training", "fused_attn", "grad_checkpointing"}


class CachedBatch(NamedTuple):
    """features [B, F] ("features") or captured ("kv", for `VQT.read`), and labels [B] if the data had any."""

    features: Tensor | None
    captured: Captured | None
    labels: Tensor | None


class FeatureCache:
    """A finished cache; iterates over its batches in the order of the data."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Raises: FileNotFoundError for a folder without a cache; ValueError for one that is not finished."""
        self.folder = Path(folder)
        found = _read_plan(self.folder)
        if found is None:
            raise FileNotFoundError(f"{self.folder}: expected a feature cache, found no cache.json")
        if "batches" not in found:
            raise ValueError(f"{self.folder}: expected a finished cache; extract again, it goes on where it stopped")
        self.what: What = found["what"]
        self.layers: tuple[int, ...] = tuple(found["layers"])
        self.batches: int = found["batches"]

    def __len__(self) -> int:
        """Number of batches."""
        return self.batches

    def __iter__(self) -> Iterator[CachedBatch]:
        for number in range(self.batches):
            with safe_open(_shard(self.folder, number), framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            labels = tensors.pop("labels", None)
            if self.what == "features":
                yield CachedBatch(tensors["features"], None, labels)
            else:
                yield CachedBatch(None, _captured(tensors, self.layers), labels)


def extract(
    vqt: Any, loader: Iterable[Any], out: str | os.PathLike[str], what: What, dtype: torch.dtype | None
) -> FeatureCache:
    """Run `vqt`, in evaluation, over the batches of `loader` and keep what comes out in the folder `out`.

    loader: images [B, 3, H, W], or pairs of these and labels [B], in the same order each time. dtype: of what is
    stored, None for its own. Raises: ValueError if the backbone may change, if `out` holds other files or the cache of
    other weights or settings, or if a batch is not the one that was cached before in its place.
    """
    if what not in ("features", "kv"):
        raise ValueError(f"extract: what: expected 'features' or 'kv', got {what!r}")
    if vqt.backbone_grad:
        raise ValueError("extract: expected a frozen backbone, got backbone_grad=True, which changes as it learns")
    folder = Path(out)
    plan = {"what": what, "layers": vqt.layers, "of": _identity(vqt, what, dtype)}
    _start(folder, plan)
    count, was = 0, vqt.training
    vqt.eval()
    try:
        for count, item in enumerate(loader, 1):
            images, labels = _parts(item)
            digest = _digest(images, labels)
            path = _shard(folder, count - 1)
            if path.is_file():
                _check_same(path, digest)
                continue
            with torch.no_grad():
                tensors = _tensors(vqt, images.to(vqt.like.device), what)
            tensors = {name: value.to(dtype or value.dtype).cpu().contiguous() for name, value in tensors.items()}
            if labels is not None:
                tensors["labels"] = labels.cpu().contiguous()
            partial = path.with_name(f"{path.name}.tmp.{os.getpid()}")
            save_file(tensors, partial, metadata={"batch": digest})
            os.replace(partial, path)
    finally:
        vqt.train(was)
    if _shard(folder, count).is_file():
        raise ValueError(f"{folder}: expected the batches that were cached here before, the loader has {count} only")
    if count == 0:
        raise ValueError("extract: expected at least one batch, the loader gave none")
    _write_plan(folder, {**plan, "batches": count})
    return FeatureCache(folder)


def _tensors(vqt: Any, images: Tensor, what: What) -> dict[str, Tensor]:
    if what == "features":
        return {"features": vqt(images).features}
    captured = vqt.capture(images, mode="kv")
    tensors = {"pooled": captured.pooled}
    for place, kept in enumerate(captured.kept):
        tensors[f"k.{place}"], tensors[f"v.{place}"] = kept.tensors
    return tensors


def _captured(tensors: dict[str, Tensor], layers: tuple[int, ...]) -> Captured:
    kept = tuple(Kept("kv", (tensors[f"k.{place}"], tensors[f"v.{place}"])) for place in range(len(layers)))
    pooled = tensors["pooled"]
    # Tokens are not cached, since no readout looks at them.
    return Captured(pooled, pooled.new_empty(len(pooled), 0, 0), kept, layers)


def _identity(vqt: Any, what: What, dtype: torch.dtype | None) -> str:
    """Of all that decides what comes out; the queries do so for features only."""
    settings = {"what": what, "layers": vqt.layers, "dtype": str(dtype), "stored": str(vqt.store_dtype)}
    settings |= {"exclude_prompts": vqt.exclude_prompts, "backbone": _make_up(vqt.vit)}
    if what == "features":
        names = ("num_tokens", "readout", "normalize", "include_final")
        settings |= {name: getattr(vqt, name) for name in names}
        settings["queries"] = fingerprint(vqt, {name: _make_up(part) for name, part in vqt.named_children()})
    return fingerprint(vqt.vit, settings)


def _make_up(net: nn.Module) -> dict[str, Any]:
    """Class and plain settings of every module, which its weights do not show: heads, pooling, activations."""
    found = {}
    for name, module in net.named_modules():
        plain = {own: value for own, value in vars(module).items() if isinstance(value, bool | int | float | str)}
        found[name] = [type(module).__qualname__, {own: plain[own] for own in plain.keys() - _HOW}]
    return found


def _parts(item: Any) -> tuple[Tensor, Tensor | None]:
    parts = tuple(item) if isinstance(item, list | tuple) else (item,)
    if not 1 <= len(parts) <= 2 or not all(isinstance(part, Tensor) for part in parts):
        raise ValueError(f"extract: expected batches of images, or of images and labels, got {type(item).__name__}")
    return parts[0], parts[1] if len(parts) == 2 else None


def _digest(images: Tensor, labels: Tensor | None) -> str:
    digest = hashlib.sha256()
    for part in (images, labels):
        if part is not None:
            data = part.detach().cpu().contiguous()
            digest.update(f"{data.dtype} {list(data.shape)}".encode())
            digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _check_same(path: Path, digest: str) -> None:
    with safe_open(path, framework="pt") as file:
        if file.metadata()["batch"] != digest:
            raise ValueError(
                f"{path}: expected the images and labels that were cached here before; the loader changed its order or "
                "its labels; extract these into another folder"
            )


def _start(folder: Path, plan: dict[str, Any]) -> None:
    found = _read_plan(folder)
    if found is None:
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder}: expected an empty folder or a feature cache, found other files")
        folder.mkdir(parents=True, exist_ok=True)
        _write_plan(folder, plan)
    elif {name: found.get(name) for name in plan} != plan:
        raise ValueError(f"{folder}: expected the cache of this readout, found that of other weights or settings")


def _read_plan(folder: Path) -> dict[str, Any] | None:
    path = folder / "cache.json"
    if not path.is_file():
        return None
    plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return plan


def _write_plan(folder: Path, plan: dict[str, Any]) -> None:
    partial = folder / f"cache.json.tmp.{os.getpid()}"
    partial.write_text(json.dumps(plan), encoding="utf-8")
    os.replace(partial, folder / "cache.json")


def _shard(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.safetensors"
