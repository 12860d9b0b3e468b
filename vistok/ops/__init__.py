"""Hot operations: one file per op, its functions bound here."""

from .code_usage import code_counts, perplexity, usage
from .nearest_code import nearest_code

__all__ = ["code_counts", "nearest_code", "perplexity", "usage"]
