"""What launchers share: rows that vector loads can read, and the name of the processor that they lie on."""

import torch
from torch import Tensor


def aligned(rows: Tensor) -> Tensor:
    """Rows [N, D] of a multiple of 16 numbers, 16-byte aligned: these, or a copy padded with zeros to [N, D']."""
    spare = -rows.shape[1] % 16
    if not spare and rows.stride(1) == 1 and rows.stride(0) % 16 == 0 and rows.data_ptr() % 16 == 0:
        return rows
    return torch.nn.functional.pad(rows, (0, spare)).clone(memory_format=torch.contiguous_format)


def target(x: Tensor) -> str:
    """Processor such as "sm_90" or "gfx942"; the interpreter, which has none, counts as "sm_90"."""
    if not x.is_cuda:
        return "sm_90"
    if torch.version.hip:
        return str(torch.cuda.get_device_properties(x.device).gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability(x.device)
    return f"sm_{major}{minor}"


def processors(x: Tensor) -> int:
    """Number of multiprocessors (1 in the interpreter)."""
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1
