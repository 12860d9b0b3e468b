"""Q-Former: learned queries that read image features through BERT's layers (BLIP-2, arXiv:2301.12597, section 3.1).

Every layer: self-attention, then (queries only, every n-th layer) cross-attention to the image, then a feed-forward
net, each followed by h <- LN(h + dropout(f(h))). Queries and text share the self-attention, each has its own
feed-forward net. `causal` (SEED, arXiv:2307.08041, section 3.1): query i sees the queries j <= i; text, where there is
some, sees and is seen by all. Keys as in the published checkpoints: bert.embeddings, bert.encoder.layer.i.

A query replaced leaves the outputs before it as they were, bit for bit: weights of unseen keys are exact zeros, and
every other operation works row by row. B items, Q queries, T text tokens, N image tokens, W width, C image width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from vistok.layers.transformer import plain_attention


def learned_queries(count: int, width: int) -> nn.Parameter:
    """Query embeddings [1, count, width] drawn from N(0, .02^2), as BLIP-2 starts them."""
    return nn.Parameter(torch.randn(1, count, width) * 0.02)


class _Projections(nn.Module):
    """Queries of width W, keys and values from another width, multi-head attention between them."""

    def __init__(self, width: int, source: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(source, width)
        self.value = nn.Linear(source, width)

    def forward(self, x: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (
            rows.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for rows in (self.query(x), self.key(source), self.value(source))
        )
        dropout = self.dropout if self.training else 0.0
        # As in `layers.transformer.Attention`: on CPUs the backward pass of the fused kernel is the slower one.
        plain = torch.is_grad_enabled() and q.requires_grad and q.device.type == "cpu"
        attend = plain_attention if plain else nn.functional.scaled_dot_product_attention
        return attend(q, k, v, mask, dropout).transpose(1, 2).flatten(2)


class _Residual(nn.Module):
    """LN(h + dropout(dense(x)))."""

    def __init__(self, source: int, width: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(source, width)
        self.LayerNorm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        out: Tensor = self.LayerNorm(h + self.dropout(self.dense(x)))
        return out


class _Attention(nn.Module):
    def __init__(self, width: int, source: int, heads: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.self = _Projections(width, source, heads, dropout)
        self.output = _Residual(width, width, dropout, eps)

    def forward(self, h: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
        out: Tensor = self.output(self.self(h, source, mask), h)
        return out


class _Intermediate(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(self.dense(x))


class _Layer(nn.Module):
    def __init__(
        self, width: int, heads: int, hidden: int, source: int | None, text: bool, dropout: float, eps: float
    ) -> None:
        super().__init__()
        self.attention = _Attention(width, width, heads, dropout, eps)
        self.crossattention = None if source is None else _Attention(width, source, heads, dropout, eps)
        self.intermediate_query = _Intermediate(width, hidden)
        self.output_query = _Residual(hidden, width, dropout, eps)
        self.intermediate = _Intermediate(width, hidden) if text else None
        self.output = _Residual(hidden, width, dropout, eps) if text else None

    def forward(
        self, h: Tensor, queries: int, image: Tensor | None, seen: Tensor | None, image_seen: Tensor | None
    ) -> Tensor:
        h = self.attention(h, h, seen)
        parts = []
        if queries:
            of_queries = h[:, :queries]
            if self.crossattention is not None:
                of_queries = self.crossattention(of_queries, image, image_seen)
            parts.append(self.output_query(self.intermediate_query(of_queries), of_queries))
        if h.shape[1] > queries:
            assert self.intermediate is not None and self.output is not None
            of_text = h[:, queries:]
            parts.append(self.output(self.intermediate(of_text), of_text))
        return torch.cat(parts, 1)


class _Embeddings(nn.Module):
    def __init__(self, width: int, vocabulary: int, positions: int, eps: float) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary, width) if vocabulary else None
        self.position_embeddings = nn.Embedding(positions, width) if vocabulary else None
        self.LayerNorm = nn.LayerNorm(width, eps=eps)


class _Encoder(nn.Module):
    def __init__(self, layers: list[_Layer]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(layers)


class _Bert(nn.Module):
    def __init__(self, embeddings: _Embeddings, encoder: _Encoder) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.encoder = encoder


class QFormer(nn.Module):
    """BERT whose first inputs are queries; for queries alone, text alone, or both together."""

    def __init__(
        self,
        *,
        causal: bool,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        hidden: int = 3072,
        image_width: int = 1408,
        cross_every: int = 2,
        vocabulary: int = 0,
        positions: int = 512,
        dropout: float = 0.1,
        eps: float = 1e-12,
    ) -> None:
        """hidden: width inside the feed-forward nets. cross_every: layers 0, n, 2n, ... read the image.

        vocabulary: entries of the text branch's word embeddings, 0 = no text branch. positions: longest text.
        Raises: ValueError unless the heads divide the width and every count is at least 1.
        """
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"qformer: expected heads that divide width={width}, got heads={heads}")
        if min(layers, hidden, image_width, cross_every) < 1 or vocabulary < 0 or (vocabulary and positions < 1):
            raise ValueError(
                f"qformer: expected layers, hidden, image_width and cross_every >= 1 and a vocabulary >= 0, got "
                f"{layers}, {hidden}, {image_width}, {cross_every} and {vocabulary}"
            )
        self.causal, self.width, self.image_width = causal, width, image_width
        self.vocabulary, self.positions = vocabulary, positions
        self.dropout = nn.Dropout(dropout)
        self.bert = _Bert(
            _Embeddings(width, vocabulary, positions, eps),
            _Encoder(
                [
                    _Layer(
                        width, heads, hidden, None if i % cross_every else image_width, bool(vocabulary), dropout, eps
                    )
                    for i in range(layers)
                ]
            ),
        )
        _init_like_bert(self)

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.bert.encoder.layer)

    def forward(
        self,
        queries: Tensor | None = None,
        image: Tensor | None = None,
        *,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        image_mask: Tensor | None = None,
    ) -> Tensor:
        """queries [B or 1, Q, W] and image [B, N, C], or text [B, T] int64 ids, or all three -> [B, Q + T, W].

        text_mask [B, T], image_mask [B, N] bool: True = may be seen; every item needs one such token.
        Raises: ValueError naming what is missing or has another shape.
        """
        batch = self._check(queries, image, text, text_mask, image_mask)
        parts = [] if queries is None else [queries.expand(batch, -1, -1)]
        if text is not None:
            parts.append(self._embed(text))
        h: Tensor = self.dropout(self.bert.embeddings.LayerNorm(torch.cat(parts, 1)))
        count = 0 if queries is None else queries.shape[1]
        seen = self._seen(count, h.shape[1] - count, h.device, text_mask)
        image_seen = None if image_mask is None else image_mask[:, None, None, :]
        for layer in self.bert.encoder.layer:
            h = layer(h, count, image, seen, image_seen)
        return h

    def start_queries_from_text(self) -> None:
        """Copy the text's feed-forward nets into the queries', as BLIP-2 does when it starts from BERT.

        Raises: ValueError if there is no text branch.
        """
        if not self.vocabulary:
            raise ValueError("qformer: expected a text branch to start from, give vocabulary=")
        layers: Any = self.bert.encoder.layer
        for layer in layers:
            layer.intermediate_query.load_state_dict(layer.intermediate.state_dict())
            layer.output_query.load_state_dict(layer.output.state_dict())

    def _embed(self, text: Tensor) -> Tensor:
        words, places = self.bert.embeddings.word_embeddings, self.bert.embeddings.position_embeddings
        assert words is not None and places is not None
        embedded: Tensor = words(text) + places.weight[: text.shape[1]]
        return embedded

    def _seen(self, queries: int, words: int, device: torch.device, text_mask: Tensor | None) -> Tensor | None:
        """[1 or B, 1, Q + T, Q + T] bool or None: which key each place sees."""
        seen = None
        if self.causal and queries > 1:
            seen = torch.ones(queries + words, queries + words, dtype=torch.bool, device=device)
            seen[:queries, :queries].tril_()
            seen = seen[None, None]
        if text_mask is not None:
            keys = nn.functional.pad(text_mask.bool(), (queries, 0), value=True)[:, None, None, :]
            seen = keys if seen is None else seen & keys
        return seen

    def _check(
        self,
        queries: Tensor | None,
        image: Tensor | None,
        text: Tensor | None,
        text_mask: Tensor | None,
        image_mask: Tensor | None,
    ) -> int:
        if queries is None and text is None:
            raise ValueError("qformer: expected queries and an image, text, or all three, got none of them")
        if (queries is None) != (image is None):
            raise ValueError("qformer: expected queries and an image together, got one of them")
        sizes = set()
        if queries is not None and image is not None:
            if queries.ndim != 3 or queries.shape[2] != self.width or queries.shape[1] < 1:
                raise ValueError(f"qformer: expected queries [B or 1, Q, {self.width}], got {list(queries.shape)}")
            if image.ndim != 3 or image.shape[2] != self.image_width:
                raise ValueError(f"qformer: expected an image [B, N, {self.image_width}], got {list(image.shape)}")
            sizes = {len(image)} | ({len(queries)} - {1})
        if text is not None:
            if not self.vocabulary:
                raise ValueError("qformer: expected no text, there is no text branch; give vocabulary=")
            if text.ndim != 2 or not 1 <= text.shape[1] <= self.positions:
                raise ValueError(f"qformer: expected text [B, T] with T in 1..{self.positions}, got {list(text.shape)}")
            sizes.add(len(text))
        for name, mask, masked in (("text_mask", text_mask, text), ("image_mask", image_mask, image)):
            if mask is not None and (masked is None or mask.shape != masked.shape[:2]):
                wanted = "none" if masked is None else list(masked.shape[:2])
                raise ValueError(f"qformer: expected {name} {wanted}, got {list(mask.shape)}")
        if len(sizes) != 1:
            raise ValueError(f"qformer: expected one batch size for queries, image and text, got {sorted(sizes)}")
        return sizes.pop()


def _init_like_bert(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Embedding):
            nn.init.normal_(layer.weight, std=0.02)
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.bias)
