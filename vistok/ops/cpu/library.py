"""Build a C++ file of this folder with the system's compiler at its first use, and load it.

The result lies in a folder that only this user may enter, named by everything that shaped it: source, flags, compiler,
processor. Whatever goes wrong is a reason, not an error: the op then runs as torch code, after one warning.
"""

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# No -ffast-math (NaN and ties would break), no contraction: only the fused operations that the source names.
FLAGS = ("-std=c++17", "-O3", "-fopenmp", "-ffp-contract=off", "-fPIC", "-shared")
_SOURCES = Path(__file__).parent
_SECONDS = 120
_lock = threading.Lock()
_loaded: dict[str, ctypes.CDLL | str] = {}


def load(stem: str) -> ctypes.CDLL | str:
    """The library of `stem`.cpp, or the reason why there is none; a reason is also a RuntimeWarning, once."""
    with _lock:
        if stem not in _loaded:
            try:
                _loaded[stem] = ctypes.CDLL(str(build(stem)))
            except (OSError, RuntimeError) as error:
                _warn_once(str(error), not any(isinstance(found, str) for found in _loaded.values()))
                _loaded[stem] = str(error)
        return _loaded[stem]


def function(stem: str) -> Callable[..., int]:
    """The C function `stem` of that library, for pointers and sizes as int64; it returns 0 unless memory ran out.

    Raises: RuntimeError if `load` has no library.
    """
    found = load(stem)
    if isinstance(found, str):
        raise RuntimeError(f"no compiled {stem}: {found}")
    return _takes_int64(getattr(found, stem))


def _takes_int64(entry: Callable[..., int]) -> Callable[..., int]:
    # ctypes would pass plain numbers as 32-bit ints.
    return lambda *values: entry(*map(ctypes.c_int64, values))


def build(stem: str, architecture: str = "native") -> Path:
    """Compile `stem`.cpp for a processor that -march names, unless that was done before: the path of the library.

    Raises: RuntimeError or OSError with the reason.
    """
    compiler = _compiler()
    flags = (*FLAGS, f"-march={architecture}")
    folder = _private_folder()
    target = folder / f"{stem}-{_key(stem, compiler, flags)}.so"
    if not target.exists():
        with _locked(folder / f"{stem}.lock"):
            if not target.exists():
                _compile(compiler, flags, _SOURCES / f"{stem}.cpp", target)
    return target


def _warn_once(reason: str, first: bool) -> None:
    if first:
        warnings.warn(
            f"vistok.ops: no compiled code, ops run as slower torch code with the same results: {reason}",
            RuntimeWarning,
            stacklevel=2,
        )


def _compiler() -> str:
    for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        path = shutil.which(name) if name else None
        if path:
            return path
    raise RuntimeError("there is no C++ compiler: install g++ or clang++, or name one in CXX")


def _compile(compiler: str, flags: tuple[str, ...], source: Path, target: Path) -> None:
    """Into a file beside the target, then moved there: nobody ever loads half a library."""
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / target.name
        command = [compiler, *flags, str(source), "-o", str(made)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"{compiler} took more than {_SECONDS} s over {source.name}") from error
        if done.returncode:
            raise RuntimeError(f"{compiler} cannot compile {source.name}: {done.stderr.strip()[-500:]}")
        os.replace(made, target)


def _key(stem: str, compiler: str, flags: tuple[str, ...]) -> str:
    """Hash of all that decides what the compiler makes: 16 hexadecimal digits."""
    sources = [_SOURCES / f"{stem}.cpp", *sorted(_SOURCES.glob("*.h"))]
    parts = [path.read_bytes() for path in sources]
    parts += [" ".join((compiler, *flags)).encode(), _version(compiler).encode(), _processor().encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


@functools.cache
def _version(compiler: str) -> str:
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode:
        raise RuntimeError(f"{compiler} --version fails: {done.stderr.strip()[-500:]}")
    return done.stdout


@functools.cache
def _processor() -> str:
    """Architecture, model and instruction sets: what -march=native looks at."""
    listing = Path("/proc/cpuinfo")
    text = listing.read_text(encoding="utf-8", errors="replace") if listing.is_file() else platform.processor()
    told = dict.fromkeys(re.findall(r"^(?:model name|flags|Features|CPU part)\s*:.*$", text, re.MULTILINE))
    return "\n".join([platform.machine(), *told]) if told else f"{platform.machine()} {text}"


def cache_folder() -> Path:
    """Where compiled code goes: VISTOK_CACHE, else vistok in XDG_CACHE_HOME, else ~/.cache/vistok."""
    named = os.environ.get("VISTOK_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vistok"


def _private_folder() -> Path:
    """The folder `ops` of the cache, made if absent. Code that another user could put there would run as this one."""
    if sys.platform == "win32":
        raise RuntimeError("compiled code is not supported on Windows")
    folder = cache_folder() / "ops"
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    for path, forbidden in ((folder.parent, 0o022), (folder, 0o077)):
        status = path.stat(follow_symlinks=path != folder)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise RuntimeError(f"{path} is not a folder of this user; name another one in VISTOK_CACHE")
        if status.st_mode & forbidden:
            mode = f"{stat.S_IMODE(status.st_mode):o}"
            raise RuntimeError(f"{path} is open to other users (mode {mode}); chmod 700 it or set VISTOK_CACHE")
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time compiles; the others wait and find the result."""
    if sys.platform == "win32":
        raise RuntimeError("compiled code is not supported on Windows")
    import fcntl

    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
