"""Operations of a decoder whose layers see different numbers of tokens. Pure functions of sizes.

n tokens, d hidden width, m FFN width. Papers count a multiplication and an addition as one or as two, and gate
matrices or not: each published formula has its own function; `exact_*` counts two per multiplication and addition.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

LayerFormula = Callable[[float, int, int], float]


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a decoder: layers, hidden d, ffn m, query and key heads, their width, vocabulary."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int = 0
    gated: bool = True


def plain_layer(n: float, d: int, m: int) -> float:
    """4 n d^2 + 2 n^2 d + 2 n d m: FastV (arXiv:2403.06764), DivPrune, ToDRE."""
    return 4 * n * d * d + 2 * n * n * d + 2 * n * d * m


def gated_layer(n: float, d: int, m: int) -> float:
    """4 n d^2 + 2 n^2 d + 3 n d m, an FFN with a gate: PyramidDrop (arXiv:2410.17247), TransPrune."""
    return 4 * n * d * d + 2 * n * n * d + 3 * n * d * m


FORMULAS: dict[str, LayerFormula] = {
    "divprune": plain_layer,
    "todre": plain_layer,
    "fastv": plain_layer,
    "transprune": gated_layer,
    "pdrop": gated_layer,
}


def staged(tokens: Sequence[float], d: int, m: int, formula: LayerFormula = gated_layer) -> float:
    """Prefill of layers that see tokens[0], tokens[1], ... tokens each."""
    return sum(formula(n, d, m) for n in tokens)


def next_layer_attention(rows: int, tokens: float, d: int) -> float:
    """n_t n_i d: instruction rows over the tokens alive at a cut, as TransPrune counts them."""
    return rows * tokens * d


def decode(n: float, new: int, layers: int, d: int, m: int) -> float:
    """`new` tokens behind a cache of n: T (4 L d^2 + 2 L d m + d L (2n + L - 1)) (ToDRE, arXiv:2505.18757)."""
    return layers * (4 * new * d * d + 2 * new * d * m + d * new * (2 * n + new - 1))


def staged_decode(tokens: Sequence[float], new: int, d: int, m: int) -> float:
    """`decode` of layers whose caches hold tokens[0], tokens[1], ... entries."""
    return sum(decode(n, new, 1, d, m) for n in tokens)


def mean_tokens(tokens: Sequence[float]) -> float:
    """Tokens per layer on average: the measure by which methods of all stages compare at an equal budget."""
    return sum(tokens) / len(tokens)


def exact_layer(n: float, keys: float, shape: DecoderShape) -> float:
    """One decoder layer over n new tokens that see `keys` keys each; norms, rotations and softmax left out."""
    width, kv_width = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    projections = n * shape.hidden * (2 * width + 2 * kv_width)
    attention = 2 * n * keys * width
    ffn = (3 if shape.gated else 2) * n * shape.hidden * shape.ffn
    return 2 * (projections + attention + ffn)


def exact_prefill(tokens: Sequence[float], shape: DecoderShape, *, logit_rows: int = 1) -> float:
    """All layers over tokens[0], tokens[1], ... (keys: all of them, as dense kernels count), and the output head."""
    return sum(exact_layer(n, n, shape) for n in tokens) + 2 * logit_rows * shape.hidden * shape.vocab


def exact_decode(tokens: Sequence[float], new: int, shape: DecoderShape) -> float:
    """`new` tokens one by one behind caches of tokens[0], tokens[1], ... entries, and the output head for each."""
    layers = sum(exact_layer(1, n + step, shape) for n in tokens for step in range(1, new + 1))
    return layers + 2 * new * shape.hidden * shape.vocab


def cache_bytes(tokens: Sequence[float], shape: DecoderShape, element: int) -> float:
    """Keys and values of one item in all layers; element: bytes per number."""
    return sum(2 * n * shape.kv_heads * shape.head_dim * element for n in tokens)
