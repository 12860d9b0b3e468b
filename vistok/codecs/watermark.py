"""A watermark in the ids of any VQ tokenizer: a keyed modular relation of chosen tokens.

Speech Watermarking with Discrete Intermediate Representations (DiscreteWM, arXiv:2412.13917), carried over to images:
a marked token's class, id mod k, is what key and message say; a token of another class gives way to the nearest code
of the right one. Which tokens are marked is chosen by a net that the key does not reach (there a manipulator model,
here `SurvivalNet`), or by the key itself.

For a token at place i: wanted class = (pad_i + message_{i mod b}) mod k, pad_i uniform from SHAKE-256 of the key. A
picture that does not know the key therefore matches at each place with chance exactly 1 / k, whatever it shows and
whichever places are read, so matches of n places are Binomial(n, 1 / k): `threshold` is the exact one for the
false-positive rate that is stated, and p values are exact. The chance is that of keys: under one key, pictures of the
same ids are right or wrong together. The paper tests with a normal approximation.

vq_nano, photographs: four of scikit-image that neither tokenizer nor net was trained on, centre 256 px, 1024 tokens,
k = 2, found at a rate of at most 1e-3; scenes: 20 of the test split, 256 px. Share of marked places whose class is
right, and of pictures found, behind 8 bits and encoding again / JPEG 90 / 75 / 50:

| photographs, places | tokens | dB lost | right, % | found, % |
|---|---|---|---|---|
| by the key | 32 | 0.02 | 83 / 82 / 80 / 76 | 75 / 75 / 75 / 50 |
| learned | 32 | 0.06 | 89 / 92 / 89 / 88 | 100 / 100 / 100 / 100 |
| by the key | 64 | 0.05 | 82 / 82 / 79 / 75 | 75 / 75 / 75 / 75 |
| learned | 64 | 0.11 | 89 / 90 / 89 / 89 | 100 / 100 / 100 / 100 |
| by the key | 128 | 0.11 | 85 / 86 / 82 / 81 | 100 / 100 / 75 / 100 |
| learned | 128 | 0.23 | 91 / 90 / 90 / 88 | 100 / 100 / 100 / 100 |
| by the key | 256 | 0.26 | 87 / 85 / 83 / 81 | 100 / 100 / 100 / 100 |
| learned | 256 | 0.44 | 91 / 90 / 89 / 87 | 100 / 100 / 100 / 100 |

| scenes, places | tokens | dB lost | right, % | found, % |
|---|---|---|---|---|
| by the key | 32 | 0.02 | 82 / 82 / 79 / 75 | 55 / 60 / 45 / 40 |
| learned | 32 | 0.06 | 88 / 86 / 84 / 83 | 85 / 80 / 75 / 70 |
| by the key | 64 | 0.04 | 85 / 83 / 82 / 77 | 90 / 90 / 85 / 75 |
| learned | 64 | 0.12 | 89 / 89 / 87 / 85 | 100 / 100 / 100 / 100 |
| by the key | 128 | 0.10 | 85 / 84 / 82 / 78 | 95 / 95 / 95 / 90 |
| learned | 128 | 0.22 | 90 / 89 / 88 / 85 | 100 / 100 / 100 / 100 |

Eight bits over 64 tokens of the scenes are read right in 96 / 96 / 94 / 89 % by the key's places and 97 / 98 / 98 /
96 % by learned ones. A detector chooses 84 to 93 % of the embedder's places again. At equal tokens learned places last
longer and cost about twice the decibels, for what lasts is what shows: at equal loss (32 learned against 64 of the key)
they win on the photographs and lose by some points on the scenes. False positives, 20,000 trials of wrong keys on
unmarked scenes: at 32 tokens (26 matches or more, by chance 2.7e-4) 2.5e-4 by the key's places and 2.0e-4 by learned
ones, at 64 (45, 7.8e-4) 8.0e-4 and 7.5e-4.

Tried: a changed id lasts in half of the cases only (the 82 % count those that were right before), since the decoder
smooths it into its neighbourhood. Pushing such codes further for five rounds gained 3 points; classes of k-means
clusters of the codebook (4096), 128 tokens, are less right, 79 / 79 / 75 / 71 and 88 / 86 / 83 / 77 %; classes by any
one FSQ channel but the first (whose parity id mod 2 is) as well. Whoever moves the picture by some pixels moves the
grid of tokens, and the mark is gone; nothing here finds the grid again.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vistok.ops.check_ids import check_ids
from vistok.ops.nearest_code import nearest_code


class Detection(NamedTuple):
    """matches [B] int64 of n places, p_value [B] float64 of as many by chance, found [B] bool: p_value <= rate."""

    matches: Tensor
    p_value: Tensor
    found: Tensor


@dataclass(frozen=True)
class Watermark:
    """codebook [K, D] in which codes are compared; key: the secret; modulus: k classes; classes [K] int64 or None.

    classes: the class of each code, None = id mod k; `clustered_classes` makes one that small errors move less.
    """

    codebook: Tensor
    key: str
    modulus: int = 2
    classes: Tensor | None = None

    def __post_init__(self) -> None:
        """Raises: ValueError for no key, a modulus below 2, or classes that are not all there."""
        count = len(self.codebook)
        if not self.key or not 2 <= self.modulus <= count:
            raise ValueError(f"watermark: expected a key and a modulus in 2..{count}, got a modulus of {self.modulus}")
        if self.table.shape != (count,) or set(self.table.unique().tolist()) != set(range(self.modulus)):
            raise ValueError(
                f"watermark: expected the class in 0..{self.modulus - 1} of each of {count} codes, each used"
            )

    @cached_property
    def table(self) -> Tensor:
        """The class of each code [K] int64."""
        return torch.arange(len(self.codebook)) % self.modulus if self.classes is None else self.classes

    def wanted(self, tokens: int, message: Tensor | None = None) -> Tensor:
        """The class that each of `tokens` places should have, [N] int64; message [b] int64 in 0..k-1.

        Raises: ValueError for other symbols.
        """
        pad = torch.tensor(keyed_numbers(self.key, "pad", tokens)) % self.modulus
        if message is None:
            return pad
        if message.ndim != 1 or not len(message) or not bool(((message >= 0) & (message < self.modulus)).all()):
            raise ValueError(
                f"watermark: expected a message [b] of symbols in 0..{self.modulus - 1}, got {message.tolist()}"
            )
        return (pad + message[torch.arange(tokens) % len(message)]) % self.modulus

    def random_places(self, tokens: int, count: int, batch: int = 1) -> Tensor:
        """`count` of `tokens` places that the key chooses, [batch, count] int64, the same for each item."""
        _check_count(tokens, count)
        order = torch.tensor(keyed_numbers(self.key, "places", tokens)).argsort(stable=True)
        return order[:count].sort().values.expand(batch, -1)

    def replacements(self, ids: Tensor, message: Tensor | None = None) -> Tensor:
        """What each id [B, N] becomes if it is marked: itself, or the nearest code of the class that it should have."""
        self._check(ids)
        wanted = self.wanted(ids.shape[1], message).expand_as(ids)
        found = ids.clone()
        for value in range(self.modulus):
            wrong = (wanted == value) & (self.table[ids] != value)
            members = (self.table == value).nonzero()[:, 0]
            if wrong.any():
                unique, back = ids[wrong].unique(return_inverse=True)
                found[wrong] = members[nearest_code(self.codebook[unique], self.codebook[members])][back]
        return found

    def embed(self, ids: Tensor, places: Tensor, message: Tensor | None = None) -> Tensor:
        """Marked ids [B, N] of ids [B, N] at places [B, n] int64. Raises: ValueError for ids outside the codebook."""
        return ids.scatter(1, places, self.replacements(ids, message).gather(1, places))

    def detect(self, ids: Tensor, places: Tensor, message: Tensor | None = None, *, rate: float = 1e-3) -> Detection:
        """Whether ids [B, N] carry this key's mark (and this message) at places [B, n], wrongly at most at `rate`.

        places must not depend on the key's pad, as those of `random_places` and `best_places` do not.
        Raises: ValueError for a rate outside (0, 1) or ids outside the codebook.
        """
        self._check(ids)
        right = self.table[ids] == self.wanted(ids.shape[1], message)
        matches = right.gather(1, places).sum(1)
        tails = binomial_tails(places.shape[1], self.modulus)
        values = torch.tensor([tails[count] for count in matches.tolist()], dtype=torch.float64)
        return Detection(matches, values, matches >= threshold(places.shape[1], rate, self.modulus))

    def read(self, ids: Tensor, places: Tensor, length: int) -> Tensor:
        """The message [B, length] int64 that most of the places [B, n] say; a symbol without places is -1.

        Raises: ValueError for ids outside the codebook.
        """
        self._check(ids)
        said = (self.table[ids] - self.wanted(ids.shape[1])) % self.modulus
        votes = torch.zeros(len(ids), length, self.modulus, dtype=torch.int64)
        for value in range(self.modulus):
            votes[..., value].scatter_add_(1, places % length, (said.gather(1, places) == value).long())
        return votes.argmax(-1).where(votes.sum(-1) > 0, -1)

    def _check(self, ids: Tensor) -> None:
        check_ids("watermark", ids, len(self.codebook))
        if bool((ids < 0).any()):
            raise ValueError("watermark: expected an id for each token, got -1; take ids without padding")


class SurvivalNet(nn.Module):
    """How likely a marked token keeps its class when its picture is decoded, compressed and encoded again.

    Convolutions over the grid of codes; trained by `vistok.train.watermark`. It sees no key.
    """

    def __init__(self, dim: int, width: int = 32) -> None:
        """dim: D of the codes."""
        super().__init__()
        self.dim, self.width = dim, width
        self.body = nn.Sequential(
            nn.Conv2d(dim, width, 3, padding=1, padding_mode="replicate"),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1, padding_mode="replicate"),
            nn.GELU(),
            nn.Conv2d(width, 1, 1),
        )

    def forward(self, codes: Tensor) -> Tensor:
        """codes [B, h, w, D] -> logits [B, h * w]."""
        logits: Tensor = self.body(codes.permute(0, 3, 1, 2)).flatten(1)
        return logits


def best_places(scores: Tensor, count: int) -> Tensor:
    """The `count` places of the highest scores [B, N], in order of place: [B, count] int64.

    Raises: ValueError for a count outside 1..N.
    """
    _check_count(scores.shape[1], count)
    return scores.topk(count, 1).indices.sort(1).values


def clustered_classes(codebook: Tensor, clusters: int, modulus: int = 2, *, rounds: int = 10, seed: int = 0) -> Tensor:
    """Classes [K] int64 that neighbours share: k-means over the codes [K, D], the cluster's number mod k.

    Raises: ValueError for a number of clusters outside modulus..K.
    """
    if not modulus <= clusters <= len(codebook):
        raise ValueError(f"watermark: expected clusters in {modulus}..{len(codebook)}, got {clusters}")
    draw = torch.Generator().manual_seed(seed)
    centres = codebook[torch.randperm(len(codebook), generator=draw)[:clusters]].clone()
    for _ in range(rounds):
        nearest = nearest_code(codebook, centres)
        sums = torch.zeros_like(centres).index_add_(0, nearest, codebook)
        counts = torch.bincount(nearest, minlength=clusters)[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    return nearest_code(codebook, centres) % modulus


def keyed_numbers(key: str, purpose: str, count: int) -> list[int]:
    """`count` numbers below 2^62 from SHAKE-256 of key and purpose: the same on every machine."""
    content = hashlib.shake_256(f"vistok watermark\0{purpose}\0{key}".encode()).digest(8 * count)
    return [int.from_bytes(content[8 * place : 8 * place + 8], "little") >> 2 for place in range(count)]


@lru_cache(maxsize=256)
def binomial_tails(count: int, modulus: int) -> tuple[float, ...]:
    """P(X >= m) for m = 0..count + 1, X ~ Binomial(count, 1 / modulus), from exact integers."""
    total, ahead, found = modulus**count, 0, [0.0]
    for matches in range(count, -1, -1):
        ahead += math.comb(count, matches) * (modulus - 1) ** (count - matches)
        found.append(ahead / total)
    return tuple(reversed(found))


def threshold(count: int, rate: float, modulus: int = 2) -> int:
    """The least number of matches of `count` that chance reaches at most at `rate`; count + 1 if none is so rare.

    Raises: ValueError for a rate outside (0, 1).
    """
    if not 0 < rate < 1:
        raise ValueError(f"watermark: expected a false-positive rate in (0, 1), got {rate}")
    return next(matches for matches, tail in enumerate(binomial_tails(count, modulus)) if tail <= rate)


Scorer = Callable[[Tensor], Tensor]
"""codes [B, h, w, D] -> scores [B, h * w]."""


def _check_count(tokens: int, count: int) -> None:
    if not 1 <= count <= tokens:
        raise ValueError(f"watermark: expected 1..{tokens} places, got {count}")
