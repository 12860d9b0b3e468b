"""Hot operations: one file per op, its functions bound here."""

from .code_statistics import code_statistics
from .code_usage import code_counts, perplexity, usage
from .dispatch import explain, use
from .nearest_code import nearest_code

__all__ = [
    "code_counts",
    "code_statistics",
    "explain",
    "nearest_code",
    "perplexity",
    "usage",
    "use",
]
