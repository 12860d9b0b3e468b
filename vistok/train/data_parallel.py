"""One training loop in several processes of one thread each, which see different data and share one gradient.

For models of a few million parameters on a CPU this is far faster than one process with several threads.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes


@contextmanager
def side_processes(world: int, work: Callable[..., None], *arguments: Any) -> Iterator[None]:
    """Start `work(rank, *arguments)` in processes 1 to world - 1 and join them and this one, rank 0, in a gloo group.

    Raises: torch.multiprocessing.ProcessRaisedException with the traceback of a side process that failed. All end with
    the block, however it ends.
    """
    if world == 1:
        yield
        return
    # Processes meet at a file, not at a port, so that two runs on one machine cannot meet each other.
    with tempfile.TemporaryDirectory(prefix="vistok-") as folder:
        meeting = f"file://{Path(folder) / 'meeting'}"
        others = start_processes(
            _join, (meeting, world, work, arguments), nprocs=world - 1, join=False, start_method="spawn"
        )
        try:
            dist.init_process_group("gloo", meeting, world_size=world, rank=0)
            try:
                yield
            except RuntimeError:
                others.join(timeout=5)  # its error says more than the connection that it left
                raise
            dist.destroy_process_group()
            while not others.join():
                pass
        finally:
            for process in others.processes:
                process.kill()
            if dist.is_initialized():
                dist.destroy_process_group()


def average_gradients(parameters: Iterable[nn.Parameter], clip: float) -> float:
    """Average all gradients over the processes and clip their norm; returns the norm before."""
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    if dist.is_initialized():
        flat = torch.cat([_gradient(parameter).flatten() for parameter in trained])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for parameter, part in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
            _gradient(parameter).copy_(part.view_as(parameter))
    return float(nn.utils.clip_grad_norm_(trained, clip))


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _join(index: int, meeting: str, world: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", meeting, world_size=world, rank=index + 1)
    work(index + 1, *arguments)
    dist.destroy_process_group()
