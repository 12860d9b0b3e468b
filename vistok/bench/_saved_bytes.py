"""Memory that a training step costs beyond its weights: what autograd keeps between forward and backward."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def saved_bytes(forward: Callable[[], object], known: Iterable[Tensor]) -> int:
    """Bytes of all storages that one forward saves for backward, each once, without those of `known` tensors.

    known: parameters, buffers and inputs, which are there anyway.
    """
    skip = {tensor.untyped_storage().data_ptr() for tensor in known}
    # The tensors are held, or a storage that is freed early would lend its address to the next one.
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(tensor.untyped_storage().nbytes() for address, tensor in found.items() if address not in skip)
