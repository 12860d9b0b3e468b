"""Hot operations: one file per op, its functions bound here."""

from .attention_rows import AttentionRows, attention_rows
from .bipartite_match import bipartite_match
from .bsq import bsq, bsq_unpack
from .code_entropy import code_entropy
from .code_statistics import code_statistics
from .code_usage import code_counts, perplexity, usage
from .compact import Compact, compact, scatter_back
from .dispatch import explain, use
from .fsq import fsq, fsq_unpack
from .index_propagation import index_propagation
from .k_center import KCenter, k_center
from .lfq import lfq, lfq_unpack
from .max_sum import MaxSum, max_sum
from .merge import Merged, merge, unmerge
from .nearest_code import nearest_code
from .stable_topk import stable_topk
from .sub_ids import join_ids, split_ids
from .transition_score import transition_score
from .transition_stats import TransitionStats, transition_stats

__all__ = [
    "AttentionRows",
    "Compact",
    "KCenter",
    "MaxSum",
    "Merged",
    "TransitionStats",
    "attention_rows",
    "bipartite_match",
    "bsq",
    "bsq_unpack",
    "code_counts",
    "code_entropy",
    "code_statistics",
    "compact",
    "explain",
    "fsq",
    "fsq_unpack",
    "index_propagation",
    "join_ids",
    "k_center",
    "lfq",
    "lfq_unpack",
    "max_sum",
    "merge",
    "nearest_code",
    "perplexity",
    "scatter_back",
    "split_ids",
    "stable_topk",
    "transition_score",
    "transition_stats",
    "unmerge",
    "usage",
    "use",
]
