"""BSQ: the cases and compiled variants of LFQ, with codes of length 1."""

import math

from .lfq import cases, variants

CASES = cases("bsq", lambda dim: 1 / math.sqrt(dim))
KERNELS = variants("bsq", 16)
