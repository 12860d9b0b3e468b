"""A LoRA adapter of PEFT in a small file, and added to a model's weights from there (LoRA, arXiv:2106.09685).

W' = W + (alpha / r) B A. safetensors of "<module>.A" [r, in] and "<module>.B" [out, r] in float16, scaled already.
"""

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

_FORMAT = "vistok.low_rank.1"
_WRAPPED = "base_model.model."


def export_low_rank(file: str | Path, adapted: Any, adapter: str = "default") -> None:
    """Write the low-rank matrices of a PEFT model, whole file or none. Raises: ValueError if it has none."""
    tensors: dict[str, Tensor] = {}
    for name, module in adapted.named_modules():
        if hasattr(module, "lora_A") and adapter in module.lora_A:
            plain = name.removeprefix(_WRAPPED)
            tensors[f"{plain}.A"] = module.lora_A[adapter].weight.detach().half().cpu()
            tensors[f"{plain}.B"] = (module.scaling[adapter] * module.lora_B[adapter].weight.detach()).half().cpu()
    if not tensors:
        raise ValueError(f"export_low_rank: expected a PEFT model with LoRA adapter {adapter!r}, found no matrices")
    partial = f"{file}.tmp.{os.getpid()}"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, {"format": _FORMAT})
    os.replace(partial, file)


@torch.no_grad()
def merge_low_rank(file: str | Path, model: Any) -> None:
    """Add the matrices of a file to the weights of the modules they are named for.

    Raises: FileNotFoundError; ValueError if the file is none of these, or a module is not there or has another shape;
    nothing is changed then.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file}: expected a file that export_low_rank wrote, there is none")
    with safe_open(file, "pt") as content:
        metadata = content.metadata() or {}
        tensors = {name: content.get_tensor(name).float() for name in content.keys()}  # noqa: SIM118 (no mapping)
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"{file}: expected low-rank matrices of format {_FORMAT}, got {metadata.get('format')!r}")
    modules: dict[str, nn.Module] = dict(model.named_modules())
    updates: list[tuple[Tensor, Tensor]] = []
    for name in sorted({tensor.rpartition(".")[0] for tensor in tensors}):
        module = modules.get(name)
        weight = getattr(module, "weight", None)
        pair = [list(tensors[key].shape) for key in (f"{name}.A", f"{name}.B") if key in tensors]
        if [len(shape) for shape in pair] != [2, 2] or pair[0][0] != pair[1][1]:
            raise ValueError(f"{file}: expected {name}.A [r, in] and {name}.B [out, r], got shapes {pair}")
        update = tensors[f"{name}.B"] @ tensors[f"{name}.A"]
        if not isinstance(weight, Tensor) or weight.shape != update.shape:
            raise ValueError(
                f"{file}: expected the model to have {name} with a weight {list(update.shape)}, got "
                f"{'none' if weight is None else list(weight.shape)}; it was made for another model"
            )
        updates.append((weight, update))
    for weight, update in updates:
        weight += update.to(weight)
