"""What adaptive tokens cost in bits: their ids or numbers, and which slots they are.

The slot mask is coded bit by bit with probabilities learned on the way, one pair of counts for each value of the bit
before (Krichevsky & Trofimov 1981): -sum log2 (n_bit + 1/2) / (n_0 + n_1 + 1). Both sides know T, so nothing else is
sent; a prefix of k slots costs about log2 T bits and not log2 (T choose k). B images, N padded tokens, T slots.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from vistok.tokens import TokenTensor


def token_bits(tokens: TokenTensor, slots: int, *, value_bits: int = 16) -> Tensor:
    """Bits of each item [B] float64: log2(codebook) per id, or value_bits per number of continuous tokens, and mask.

    slots: T, how many there were to choose from. Raises: ValueError if a token sits in none of them.
    """
    return value_bits_of(tokens, value_bits=value_bits) + mask_bits(slot_mask(tokens, slots))


def value_bits_of(tokens: TokenTensor, *, value_bits: int = 16) -> Tensor:
    """Bits of each item [B] float64 without those of the mask: all there is to say of a grid whose size is known."""
    sizes = tokens.spec.codebook_sizes
    each = sum(math.log2(size) for size in sizes) if sizes else float(value_bits * tokens.spec.dim)
    return tokens.valid_lengths.double() * each


class Rounded(NamedTuple):
    """tokens: with numbers that are multiples of a step. bits: of all of them together, without those of slots."""

    tokens: TokenTensor
    bits: float


def rounded(tokens: TokenTensor, step: float) -> Rounded:
    """Continuous tokens with their numbers rounded to multiples of `step`, and the entropy of what is left.

    bits: sum over channels of T times the entropy of the channel's T rounded numbers, the length of an ideal code whose
    tables both sides know. Raises: ValueError if there are no embeds, or a step that is not positive.
    """
    if tokens.embeds is None or not step > 0:
        raise ValueError(f"rounded: expected tokens with embeds and a step > 0, got {tokens} and {step}")
    levels = (tokens.embeds / step).round()
    bits = 0.0
    for channel in levels[tokens.mask].T:
        counts = channel.unique(return_counts=True)[1].double()
        bits -= float((counts * (counts / counts.sum()).log2()).sum())
    return Rounded(replace(tokens, embeds=levels * step), bits)


def slot_mask(tokens: TokenTensor, slots: int) -> Tensor:
    """Which of `slots` slots each item has tokens in: [B, T] bool."""
    source = tokens.source
    if source is None:
        source = torch.arange(tokens.num_slots, device=tokens.device).expand(len(tokens), -1)
    valid = tokens.mask
    if bool((source[valid] >= slots).any()):
        raise ValueError(f"token_bits: expected slots below {slots}, got {int(source[valid].max())}")
    mask = torch.zeros(len(tokens), slots + 1, dtype=torch.bool, device=tokens.device)
    mask.scatter_(1, source.where(valid, slots), True)
    return mask[:, :slots]


def mask_bits(mask: Tensor) -> Tensor:
    """Ideal length of the adaptive code of each mask [B, T] bool: [B] float64."""
    batch, slots = mask.shape
    bits = torch.zeros(batch, dtype=torch.float64, device=mask.device)
    counts = torch.full((batch, 2, 2), 0.5, dtype=torch.float64, device=mask.device)
    rows, before = torch.arange(batch, device=mask.device), mask.new_ones(batch).long()
    for slot in range(slots):
        bit = mask[:, slot].long()
        seen = counts[rows, before]
        bits -= (seen[rows, bit] / seen.sum(1)).log2()
        counts[rows, before, bit] += 1
        before = bit
    return bits
