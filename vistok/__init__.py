"""vistok: pictures to tokens and back, and fewer of them where a language model spends too much on them."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vistok.registry import (
        codec,
        info,
        list_codecs,
        list_pruners,
        list_quantizers,
        list_readouts,
        list_tokenizers,
        pruner,
        quantizer,
        readout,
        register,
        tokenizer,
    )
    from vistok.tokens import Assignment, Packed, Selection, TokenSpec, TokenTensor

__version__ = "0.1.0"

_HOME = {
    "vistok.tokens": ("TokenTensor", "TokenSpec", "Packed", "Selection", "Assignment"),
    "vistok.registry": (
        "tokenizer", "pruner", "quantizer", "readout", "codec",
        "list_tokenizers", "list_pruners", "list_quantizers", "list_readouts", "list_codecs",
        "info", "register",
    ),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
_FOLDERS = ("data", "lvlm", "metrics", "ops")

__all__ = [
    "Assignment",
    "Packed",
    "Selection",
    "TokenSpec",
    "TokenTensor",
    "codec",
    "info",
    "list_codecs",
    "list_pruners",
    "list_quantizers",
    "list_readouts",
    "list_tokenizers",
    "pruner",
    "quantizer",
    "readout",
    "register",
    "tokenizer",
]

# In a checkout (and in an editable install) `triton_kernels/` and `configs/` lie beside this package, not in it.
_here = Path(__file__).parent
if not (_here / "triton_kernels").is_dir() and (_here.parent / "pyproject.toml").is_file():
    __path__.append(str(_here.parent))


def __getattr__(name: str) -> Any:
    # Lazy, because torch alone costs more than a second and `vistok --help` needs none of it.
    if name in _MODULE_OF:
        return getattr(import_module(_MODULE_OF[name]), name)
    if name in _FOLDERS:
        return import_module(f"vistok.{name}")
    raise AttributeError(f"module 'vistok' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF, *_FOLDERS})
