"""Losses on perception tokens beside cross-entropy (AURORA, arXiv:2412.03548, section 3; Perceptio, arXiv:2603.18795).

Logits at a position are those that predict what follows it. B items, n positions, N codes of a span, V ids of the
language model, K codes of the family, D width of its codebook.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.lvlm.vocabulary import VocabMap


def distill_loss(logits: Tensor, target: Tensor, codes: VocabMap, *, restrict: bool = False) -> Tensor:
    """-sum_i q_i log p_M(i), mean over positions, [] float32.

    logits [..., V]; target [...] int64 local codes of the specialist, or [..., K] probabilities (`soft_targets`).
    restrict: p over the family alone, not over the whole vocabulary. Raises: ValueError if shapes disagree.
    """
    hard = not target.is_floating_point()
    expected = logits.shape[:-1] if hard else (*logits.shape[:-1], len(codes))
    if target.shape != expected:
        raise ValueError(
            f"distill loss: expected {'codes' if hard else 'probabilities'} {list(expected)} for logits "
            f"{list(logits.shape)}, got {list(target.shape)}"
        )
    family = torch.tensor(codes.codes, device=logits.device)
    scores = logits.float()
    log_p = scores[..., family].log_softmax(-1) if restrict else scores.log_softmax(-1)[..., family]
    if hard:
        return -log_p.gather(-1, target[..., None]).mean()
    return -(target * log_p).sum(-1).mean()


def soft_targets(vectors: Tensor, codebook: Tensor, temperature: float = 1.0) -> Tensor:
    """softmax(-|z - e|^2 / T) of encoder outputs [..., D] over the codebook [K, D] -> [..., K] float32; ours."""
    flat = vectors.flatten(0, -2) if vectors.ndim > 1 else vectors[None]
    distances = torch.cdist(flat.float(), codebook.float()).square()
    return (-distances / temperature).softmax(-1).reshape(*vectors.shape[:-1], len(codebook))


def soft_merge(logits: Tensor, codes: VocabMap, codebook: Tensor) -> Tensor:
    """Expected code vectors: softmax of logits [..., V] over the family, times the codebook [K, D] -> [..., D].

    Raises: ValueError if the codebook has not as many rows as the family codes.
    """
    if len(codebook) != len(codes):
        raise ValueError(f"soft merge: expected a codebook of {len(codes)} rows, got {len(codebook)}")
    family = torch.tensor(codes.codes, device=logits.device)
    return logits[..., family].float().softmax(-1) @ codebook.float()


def reconstruction_loss(
    logits: Tensor,
    places: Tensor,
    target: Tensor,
    codes: VocabMap,
    codebook: Tensor,
    decode: Callable[[Tensor], Tensor],
) -> Tensor:
    """|g(t) - f|^2: decoded expected codes against the decoder's output for the true ones, mean, [] float32.

    logits [B, n, V]; places [B, N] int64: the positions that predict the N codes; target [B, N] local codes; decode:
    the frozen decoder, [B, N, D] -> pictures. Off by default in AURORA, which found no gain.
    Raises: ValueError if shapes disagree.
    """
    if places.shape != target.shape or logits.ndim != 3 or len(places) != len(logits):
        raise ValueError(
            f"reconstruction loss: expected logits [B, n, V], places and target [B, N], got {list(logits.shape)}, "
            f"{list(places.shape)} and {list(target.shape)}"
        )
    at_span = logits.gather(1, places[..., None].expand(-1, -1, logits.shape[-1]))
    with torch.no_grad():
        truth = decode(codebook.float()[target])
    return F.mse_loss(decode(soft_merge(at_span, codes, codebook)), truth)


def marker_loss(logits: Tensor, labels: Tensor, codes: VocabMap) -> Tensor:
    """Cross-entropy where the label is a marker of the family, mean, [] float32; 0 where there is none.

    logits [B, n, V], labels [B, n] int64, already shifted. The exact form of the paper is not known; this one is ours.
    """
    markers = torch.tensor((*codes.begin, *codes.end), device=labels.device)
    there = torch.isin(labels, markers)
    if not bool(there.any()):
        return logits.sum() * 0.0
    return F.cross_entropy(logits[there].float(), labels[there])


def count_loss(logits: Tensor, inside: Tensor, codes: VocabMap, expected: int = 100) -> Tensor:
    """(E[codes between the markers] - N)^2 / N^2, mean over items, [] float32; the form is ours.

    logits [B, n, V]; inside [B, n] bool: positions that predict what stands between the markers and the end marker.
    """
    family = torch.tensor(codes.codes, device=logits.device)
    chance = logits.float().softmax(-1)[..., family].sum(-1)
    counts = (chance * inside).sum(1)
    return ((counts - expected) / expected).square().mean()
