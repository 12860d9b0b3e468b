"""Which back end runs an op: its `backend=` argument, else `use`, else VISTOK_OPS, else what the tensors allow.

A back end that was asked for and cannot run raises with the reason; only the automatic choice falls back. A file that
defines an op declares BACKENDS, a mapping from back end to `Backend`, beside its public function. That function hands
over to the op of `vistok.ops.registration`, whose body calls `run`: a compiled graph holds one node, and the choice is
made at run time.
"""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from importlib import import_module
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from vistok.ops.cpu import library

NAMES = ("reference", "cpu", "triton")
SINGLE = frozenset({torch.float32, torch.float16, torch.bfloat16})
ANY_FLOAT = SINGLE | {torch.float64}
_FASTEST_FIRST = ("triton", "cpu", "reference")
_asked: ContextVar[str | None] = ContextVar("vistok_ops", default=None)


class Choice(NamedTuple):
    """The back end of one call, and why it is that one."""

    backend: str
    reason: str


def _fits_always(*tensors: Tensor) -> str | None:
    return None


@dataclass(frozen=True)
class Backend:
    """One implementation of an op, with what it can run.

    run: takes the op's tensors, then its options. device: "cpu", "cuda" or None for any. floats: accepted dtypes of
    floating-point tensors. library: stem of the C++ file that must be built. fits: the reason why these tensors are
    outside its envelope, or None.
    """

    run: Callable[..., Any]
    device: str | None = None
    floats: frozenset[torch.dtype] = ANY_FLOAT
    library: str | None = None
    fits: Callable[..., str | None] = _fits_always


Backends = Mapping[str, Backend]


@contextmanager
def use(backend: str) -> Iterator[None]:
    """Run every op inside the block on `backend`: "reference", "cpu", "triton" or "auto"; blocks nest.

    Raises: ValueError for another name; inside the block, whatever op cannot run there raises ValueError.
    """
    token = _asked.set(_known(backend, "vistok.ops.use"))
    try:
        yield
    finally:
        _asked.reset(token)


def explain(op: str | Callable[..., Any], *tensors: Tensor, backend: str | None = None) -> Choice:
    """The back end that `op` (a function of vistok.ops, or its name) would run these tensors on, and why.

    Runs nothing, but builds the op's C++ library if that decides the answer.
    Raises: KeyError for an unknown op, ValueError if a back end was asked for that cannot run.
    """
    name = op if isinstance(op, str) else op.__name__
    backends = _backends(name)
    if backends is None:
        raise KeyError(f"explain: expected an op of vistok.ops that has back ends, got {name!r}")
    return choose(name, backends, tensors, backend)


def survey(device: str = "cpu") -> dict[str, Choice]:
    """For every op the back end that float32 tensors of usual shape on `device` get, and why."""
    x = torch.empty(0, device=device)
    found: dict[str, Choice] = {}
    for name in import_module("vistok.ops").__all__:
        backends = _backends(name)
        if backends is not None:
            usual = {backend: replace(declared, fits=_fits_always) for backend, declared in backends.items()}
            found[name] = choose(name, usual, (x,), None)
    return found


def run(op: str, backends: Backends, asked: str, tensors: tuple[Tensor, ...], *options: Any) -> Any:
    """Call the chosen back end, outside autograd and autocast; the body of a torch.library op. asked "": automatic."""
    choice = choose(op, backends, tensors, asked or None)
    device = tensors[0].device.type
    # Entering and leaving autocast costs more than a small op.
    full_precision = torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
    with torch.no_grad(), full_precision:
        return backends[choice.backend].run(*tensors, *options)


def choose(op: str, backends: Backends, tensors: tuple[Tensor, ...], asked: str | None) -> Choice:
    """The back end for one call. Raises: ValueError if one was asked for that is unknown or cannot run."""
    name, asker = _wish(asked)
    if name != "auto":
        obstacle = _obstacle(name, backends, tensors)
        if obstacle:
            raise ValueError(
                f"{op}: {asker} asks for back end {name!r}, but {obstacle}; expected one that can run, or 'auto'"
            )
        return Choice(name, f"{asker} asks for it")
    obstacles: list[str] = []
    for name in _FASTEST_FIRST:
        obstacle = _obstacle(name, backends, tensors)
        if obstacle is None:
            return Choice(name, "; ".join(obstacles) or "the fastest back end can run")
        obstacles.append(f"{name}: {obstacle}")
    raise AssertionError(f"{op} declares no reference")


def _backends(name: str) -> Backends | None:
    function = getattr(import_module("vistok.ops"), name, None)
    if not isinstance(function, FunctionType):
        return None
    return getattr(sys.modules.get(function.__module__), "BACKENDS", None)


def _known(name: str, asker: str) -> str:
    if name not in (*NAMES, "auto"):
        raise ValueError(f"{asker}: expected a back end in {(*NAMES, 'auto')}, got {name!r}")
    return name


def _wish(argument: str | None) -> tuple[str, str]:
    """The name asked for, and who asked."""
    if argument is not None:
        return _known(argument, "backend="), "backend="
    inside = _asked.get()
    if inside is not None:
        return inside, "vistok.ops.use"
    return _known(os.environ.get("VISTOK_OPS") or "auto", "VISTOK_OPS"), "VISTOK_OPS"


def _obstacle(name: str, backends: Backends, tensors: tuple[Tensor, ...]) -> str | None:
    """Why back end `name` cannot run these tensors; None if it can."""
    if name not in backends:
        return "this op has no such back end"
    if name == "reference":
        return None
    backend = backends[name]
    if any(isinstance(tensor, FakeTensor) or tensor.is_meta for tensor in tensors):
        return "meta and fake tensors hold no numbers"
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.dtype not in backend.floats:
            return f"it does not compute in {str(tensor.dtype).removeprefix('torch.')}"
    return _device_obstacle(backend, tensors) or backend.fits(*tensors) or _library_obstacle(backend)


def _device_obstacle(backend: Backend, tensors: tuple[Tensor, ...]) -> str | None:
    for tensor in tensors:
        if backend.device not in (None, tensor.device.type) and not (backend.device == "cuda" and _interpreting()):
            return f"the tensors are on {tensor.device.type}, not on {backend.device}"
    # Last, because looking for a package takes longer than all the rest.
    if backend.device == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None


def _interpreting() -> bool:
    """Whether Triton runs kernels in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _library_obstacle(backend: Backend) -> str | None:
    if backend.library is None:
        return None
    found = library.load(backend.library)
    return found if isinstance(found, str) else None
