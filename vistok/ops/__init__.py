"""Hot operations: one file per op, its functions bound here."""

from .attention_rows import AttentionRows, attention_rows
from .code_statistics import code_statistics
from .code_usage import code_counts, perplexity, usage
from .dispatch import explain, use
from .nearest_code import nearest_code
from .stable_topk import stable_topk
from .transition_score import transition_score
from .transition_stats import TransitionStats, transition_stats

__all__ = [
    "AttentionRows",
    "TransitionStats",
    "attention_rows",
    "code_counts",
    "code_statistics",
    "explain",
    "nearest_code",
    "perplexity",
    "stable_topk",
    "transition_score",
    "transition_stats",
    "usage",
    "use",
]
