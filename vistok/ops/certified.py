"""The nearest code as float64 sees it, the same on every machine. N rows, K codes, D width, u = unit roundoff.

The score that decides is -|x - c|^2 (l2), x.c / |c| (cosine) or x.c (dot) of the given numbers, in float64: terms are
rounded one by one and summed by halves (the upper half of a power-of-two width onto the lower one, again and again).
IEEE arithmetic in that order gives the same bits everywhere. The lowest index wins among equal scores.

To find it, scores are first computed in some order and precision u from rows and codes moved by a common centre. The
usual bound of a dot product of width D with one more term (Higham, Accuracy and Stability of Numerical Algorithms,
section 3.1), the rounding of moved or normalised operands, and of the deciding score itself, make `rounding_bound`. A
code more than twice the bound below the best one cannot decide, so only codes within it are scored in float64.
"""

import torch
from torch import Tensor

from vistok.ops.codebook_scores import ROWS, Codebook, largest_score, move_rows, prepare, score_tiles

FLOAT32, FLOAT64 = 2.0**-24, 2.0**-53
_TERMS = 1 << 22


def rounding_bound(rows: Tensor, book: Codebook, metric: str, unit: float) -> Tensor:
    """At most this far is a score of moved rows [N, D] from the exact one: [N] float64; inf where it may overflow."""
    width = rows.shape[1]
    norm = rows.double().norm(dim=1) * (1 + 1e-6)
    largest = book.codes.double().norm(dim=1).amax() * (1 + 1e-6)
    half = largest.square() / 2 if metric == "l2" else 0.0
    rounding = 1.02 * (width + 8) * unit * (norm * largest + half)
    underflow = (width + 8) * 2.0**-125 * (1 + norm + largest)
    reach = (norm + largest).square() if metric == "l2" else norm * largest
    bound: Tensor = rounding + underflow + (width + 8) * 2.0**-51 * reach
    limit = 1e37 if unit == FLOAT32 else 1e300
    return bound.where(norm * largest + largest.square() <= limit, torch.inf)


def deciding_score(x: Tensor, codes: Tensor, metric: str) -> Tensor:
    """Score of pairs: x [P, D], codes [P, D] -> [P] float64, larger is nearer."""
    x, codes = x.double(), codes.double()
    if metric == "l2":
        return -_sum_by_halves((x - codes).square())
    product = _sum_by_halves(x * codes)
    if metric == "dot":
        return product
    square = _sum_by_halves(codes.square())
    return (product / square.where(square > 0, 1).sqrt()).where(square > 0, 0)


def _sum_by_halves(terms: Tensor) -> Tensor:
    width = 1 << (terms.shape[1] - 1).bit_length() if terms.shape[1] else 1
    terms = torch.nn.functional.pad(terms, (0, width - terms.shape[1]))
    while width > 1:
        width //= 2
        terms = terms[:, :width] + terms[:, width:]
    return terms[:, 0]


def certified_code(x: Tensor, codebook: Tensor, metric: str) -> Tensor:
    """x [N, D], codebook [K, D], any floating dtype -> [N] int64: the argmax of `deciding_score`."""
    book = prepare(codebook.double(), metric)
    parts = [_certified_rows(rows, codebook, book, metric) for rows in x.split(ROWS)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=x.device)


def _certified_rows(x: Tensor, codebook: Tensor, book: Codebook, metric: str) -> Tensor:
    rows, finite = move_rows(x, book)
    best, _ = largest_score(rows, book)
    least = best - 2 * rounding_bound(rows, book, metric, FLOAT64)
    decided = torch.full_like(best, -torch.inf)
    index = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    usable = book.bias.isfinite()
    for start, score in score_tiles(rows, book):
        near = ~(score < least[:, None]) & finite[:, None] & usable[start : start + score.shape[1]]
        for pairs in near.nonzero().split(max(1, _TERMS // max(1, x.shape[1]))):
            row, code = pairs[:, 0], pairs[:, 1] + start
            _keep_largest(decided, index, row, code, deciding_score(x[row], codebook[code], metric))
    return index


def _keep_largest(best: Tensor, index: Tensor, row: Tensor, code: Tensor, score: Tensor) -> None:
    """Update best [N] and index [N] in place; codes come in ascending order, so only a larger score replaces one."""
    top = torch.full_like(best, -torch.inf).scatter_reduce_(0, row, score, "amax")
    first = score == top[row]
    lowest = torch.full_like(index, torch.iinfo(torch.int64).max).scatter_reduce_(0, row[first], code[first], "amin")
    wins = top > best
    best.copy_(top.where(wins, best))
    index.copy_(lowest.where(wins, index))
