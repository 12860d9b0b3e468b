"""Look over this installation: libraries, extras, processor, GPU, compiler, caches, embedded weights."""

import os
import platform
import re
import shutil
from collections.abc import Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub.constants import HF_HUB_CACHE
from rich import box
from rich.console import Console
from rich.table import Table

import vistok
from vistok.ops.dispatch import survey
from vistok.registry import create, info, list_tokenizers

_LIBRARIES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "diffusers": "diffusers",
    "vector-quantize-pytorch": "vector_quantize_pytorch",
    "open-clip-torch": "open_clip",
}


class Finding(NamedTuple):
    """One line of the report; `ok` is False only for what vistok needs and this machine lacks."""

    subject: str
    value: str
    ok: bool = True


def doctor() -> int:
    """Look over this installation; the exit code is 1 if something that vistok needs is missing or broken."""
    table = Table(show_header=False, box=box.SIMPLE)
    console = Console(markup=False, highlight=False)
    broken = 0
    for finding in _findings():
        table.add_row("ok" if finding.ok else "BROKEN", finding.subject, finding.value)
        broken += not finding.ok
    console.print(table)
    console.print("all is well" if not broken else f"{broken} of these need attention")
    return 1 if broken else 0


def _findings() -> Iterator[Finding]:
    yield Finding("vistok", f"{vistok.__version__} in {Path(vistok.__file__).parent}")
    yield Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for distribution, module in _LIBRARIES.items():
        yield _library(distribution, module)
    yield Finding("triton", _version("triton") or "absent; GPUs fall back to torch")
    yield from _extras()
    yield Finding("processor", f"{torch.backends.cpu.get_cpu_capability()}; {_processor_features()}")
    yield Finding("threads", f"{torch.get_num_threads()} of {os.cpu_count()} processors")
    yield Finding("CUDA", _cuda())
    yield Finding("compiler", _compiler())
    yield from _ops()
    yield _cache()
    yield from _embedded()


def _library(distribution: str, module: str) -> Finding:
    try:
        import_module(module)
    except Exception as error:  # a library built for another torch fails in its own ways
        return Finding(distribution, f"{type(error).__name__}: {error}; pip install {distribution}", ok=False)
    return Finding(distribution, _version(distribution) or "imports, but was not installed by pip")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _extras() -> Iterator[Finding]:
    """One line for each extra in the package's own metadata."""
    try:
        required = metadata.requires("vistok") or []
    except metadata.PackageNotFoundError:
        yield Finding("extras", "not known, vistok runs from a folder; pip install -e .")
        return
    extras: dict[str, list[str]] = {}
    for requirement in required:
        match = re.match(r"([\w.-]+).*;.*extra == ['\"]([\w-]+)['\"]", requirement)
        if match:
            extras.setdefault(match[2], []).append(match[1])
    for extra, distributions in extras.items():
        absent = [name for name in distributions if _version(name) is None]
        remedy = f"absent ({', '.join(absent)}): pip install 'vistok[{extra}]'"
        yield Finding(f"extra {extra}", remedy if absent else "present")


def _processor_features() -> str:
    """Vector and bf16 instructions, as far as the system tells."""
    listing = Path("/proc/cpuinfo")
    if not listing.is_file():
        return "flags not known on this system"
    flags = set(re.findall(r"\w+", next((ln for ln in listing.open() if ln.startswith(("flags", "Features"))), "")))
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
    return ", ".join(flag for flag in wanted if flag in flags) or "no vector flags listed"


def _cuda() -> str:
    if not torch.cuda.is_available():
        return f"no device (torch built for {torch.version.cuda or 'CPU only'})"
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return "; ".join(f"{d.name}, {d.total_memory / 2**30:.0f} GiB, sm_{d.major}{d.minor}" for d in devices)


def _compiler() -> str:
    candidates = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    return next((path for name in candidates if name and (path := shutil.which(name))), "absent; torch code is used")


def _ops() -> Iterator[Finding]:
    """The back end of every hot op, on this processor and on a GPU if there is one."""
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for name, choice in survey(device).items():
            yield Finding(f"op {name}", f"{device}: {choice.backend}; {choice.reason}")


def _cache() -> Finding:
    """Where weights from the hub go. Not there yet is fine as long as it can be made."""
    folder = Path(HF_HUB_CACHE)
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    writable = os.access(existing, os.W_OK)
    return Finding("hub cache", f"{folder}{'' if writable else ': not writable; set HF_HOME'}", ok=writable)


def _embedded() -> Iterator[Finding]:
    """Load every embedded tokenizer, as far as its libraries are there, and send a grey square through it."""
    for name in list_tokenizers(pretrained=True):
        if not str(info("tokenizer", name).weights).startswith("embedded:"):
            continue
        try:
            tokenizer = create("tokenizer", name, pretrained=True)
            tokenizer.encode(torch.full((1, 3, *(tokenizer.spec.image_size or (64, 64))), 0.5))
            yield Finding(f"weights {name}", "load and run")
        except ImportError as error:
            yield Finding(f"weights {name}", f"not tried, {error}; the extra is missing: pip install 'vistok[lvlm]'")
        except (FileNotFoundError, ValueError, RuntimeError, TypeError) as error:
            yield Finding(f"weights {name}", f"{type(error).__name__}: {error}", ok=False)


COMMAND = doctor
