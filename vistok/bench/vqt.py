"""Tuning a vision transformer: what a training step keeps for backward and how long it takes, VQT beside its peers."""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vistok.bench._saved_bytes import saved_bytes
from vistok.bench.timing import Timing, in_turn
from vistok.layers.adapted_mlp import add_adapters
from vistok.layers.visual_prompts import add_visual_prompts
from vistok.readouts.vqt import VQT
from vistok.readouts.vqt_classifier import VQTClassifier

LORA, FULL = "LoRA r=8", "full fine-tuning"
COLUMNS = {"saved MiB": "{0.saved_mib:.1f}", "saved / LoRA": "{0.to_lora:.3f}", "saved / full": "{0.to_full:.3f}"}


@dataclass(frozen=True)
class Step(Timing):
    """Time of a step, and what it saves: MiB, and as a part of what LoRA and full fine-tuning save."""

    saved_mib: float
    to_lora: float
    to_full: float


def run(
    rounds: int = 7,
    *,
    architecture: str = "vit_tiny_patch16_224",
    batch: int = 8,
    classes: int = 100,
    model: dict[str, Any] | None = None,
) -> Iterator[tuple[str, list[Step]]]:
    """Yield forward, loss and backward of every way to tune, in turn in one process, VQT with one query as the base.

    Time is that of one thread. Weights are random, those that are not trained take no gradient; no optimizer is part of
    a step. model: more for `timm.create_model`. Raises: ModuleNotFoundError naming the extra that LoRA needs.
    """
    import timm

    torch.manual_seed(0)
    vit: Any = timm.create_model(architecture, num_classes=classes, **(model or {}))
    height, width = vit.patch_embed.img_size
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, height, width, generator=generator)
    labels = torch.randint(classes, (batch,), generator=generator)
    tuned = {name: make(copy.deepcopy(vit), classes) for name, make in _WAYS.items()}
    saved = {}
    for name, net in tuned.items():
        known = [*net.parameters(), *net.buffers(), images, labels]
        saved[name] = saved_bytes(lambda net=net: _loss(net, images, labels), known)  # type: ignore[misc]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        steps = {name: _step(net, images, labels) for name, net in tuned.items()}
        timings = in_turn(steps, rounds, clock=time.process_time)
    finally:
        torch.set_num_threads(threads)
    yield (
        f"{architecture} {height}x{width}, batch {batch}",
        [
            Step(
                **asdict(timing),
                saved_mib=saved[timing.name] / 2**20,
                to_lora=saved[timing.name] / saved[LORA],
                to_full=saved[timing.name] / saved[FULL],
            )
            for timing in timings
        ],
    )


def _loss(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(net(images), labels)


def _step(net: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    def step() -> None:
        net.zero_grad()
        _loss(net, images, labels).backward()

    return step


def _vqt(num_tokens: int, kv_mode: Any) -> Callable[[Any, int], nn.Module]:
    return lambda vit, classes: VQTClassifier(VQT(vit, num_tokens, kv_mode=kv_mode), classes).train()


def _probe(vit: Any, classes: int) -> nn.Module:
    return _with_head(vit.requires_grad_(False))


def _prompts(vit: Any, classes: int) -> nn.Module:
    add_visual_prompts(vit, 10)
    return _with_head(vit)


def _adapters(vit: Any, classes: int) -> nn.Module:
    add_adapters(vit, 64)
    return _with_head(vit)


def _lora(vit: Any, classes: int) -> nn.Module:
    try:
        import peft
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("bench vqt: LoRA needs peft; pip install 'vistok[lvlm]'", name="peft") from error
    # It freezes all but its own.
    peft.inject_adapter_in_model(peft.LoraConfig(r=8, lora_alpha=8, target_modules=["qkv"]), vit)
    return _with_head(vit)


def _with_head(vit: Any) -> nn.Module:
    vit.head.requires_grad_(True)
    net: nn.Module = vit.train()
    return net


_WAYS: dict[str, Callable[[Any, int], nn.Module]] = {
    "VQT T=1, folded": _vqt(1, "folded"),
    "VQT T=1, kv": _vqt(1, "kv"),
    "VQT T=10, folded": _vqt(10, "folded"),
    "VQT T=10, kv": _vqt(10, "kv"),
    "linear probe": _probe,
    LORA: _lora,
    "VPT-deep, 10 prompts": _prompts,
    "AdaptFormer, bottleneck 64": _adapters,
    FULL: lambda vit, classes: vit.train(),
}
