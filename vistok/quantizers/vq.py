"""Vector quantization with a codebook of moving averages (arXiv:1711.00937, appendix A.1).

k = argmin_k |z - e_k|^2 ("cosine": argmax_k of the normalised z.e_k);  loss = beta mean (z - sg e_k)^2
n_k <- l n_k + (1-l) |S_k|,  m_k <- l m_k + (1-l) sum_{S_k} z,  e_k = m_k / n'_k with n' = n smoothed by eps.
Codes with n_k below a threshold restart at a vector of the batch; the first batch may start the codebook by k-means.

vector-quantize-pytorch holds the state, smooths the averages and restarts dead codes. Differs from its own forward:
search is `nearest_code` (its distances are clamped at 1e-4, which ties all codes of a small codebook, and are N x K);
padding is gathered away first; eval passes gradients too; k-means keeps empty clusters where they are (it moves them
to 0); processes are synchronised whenever torch.distributed runs, not only if it ran when the module was built.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from vector_quantize_pytorch import VectorQuantize
from vector_quantize_pytorch.vector_quantize_pytorch import batched_sample_vectors, noop, sample_vectors_distributed

from vistok.ops.check_ids import check_ids
from vistok.ops.code_statistics import code_statistics
from vistok.ops.code_usage import batch_usage
from vistok.ops.nearest_code import nearest_code
from vistok.ops.straight_through import GRADIENTS, straight_through, unit_vectors
from vistok.ops.valid_rows import padded, valid_rows
from vistok.protocols import Quantized
from vistok.registry import register

_METRICS = ("l2", "cosine")


@register
class VQ(nn.Module):
    """A table of codes [codebook_size, dim] that follows the vectors it is trained on; it takes no gradient itself."""

    cannot: frozenset[str] = frozenset()

    def __init__(
        self,
        dim: int = 8,
        codebook_size: int = 1024,
        *,
        metric: str = "l2",
        gradient: str = "straight_through",
        decay: float = 0.99,
        commitment_weight: float = 0.25,
        kmeans_iterations: int = 10,
        dead_code_threshold: float = 0.1,
        eps: float = 1e-5,
    ) -> None:
        """metric: "l2" or "cosine" (vectors and codes of length 1). gradient: "straight_through" or "rotation".

        kmeans_iterations: of the start on the first training batch, 0 = random start. dead_code_threshold: a code won
        by fewer vectors per batch (moving average) restarts, 0 = never; keep it well below vectors / codebook_size.
        Raises: ValueError for an unknown metric or gradient, or a size or decay out of range.
        """
        super().__init__()
        if metric not in _METRICS or gradient not in GRADIENTS:
            raise ValueError(
                f"vq: expected metric in {_METRICS}, gradient in {tuple(GRADIENTS)}, got {metric!r} and {gradient!r}"
            )
        if dim < 1 or codebook_size < 1 or not 0 <= decay <= 1:
            raise ValueError(
                f"vq: expected dim and codebook_size >= 1, decay in 0..1, got {dim}, {codebook_size}, {decay}"
            )
        self.dim = dim
        self.codebook_sizes: tuple[int, ...] = (codebook_size,)
        self.metric = metric
        self.gradient = gradient
        self.decay = decay
        self.commitment_weight = commitment_weight
        self.kmeans_iterations = kmeans_iterations
        self._held: list[Tensor] | None = None
        self.library = VectorQuantize(
            dim=dim,
            codebook_size=codebook_size,
            decay=decay,
            eps=eps,
            use_cosine_sim=metric == "cosine",
            threshold_ema_dead_code=dead_code_threshold,
            sync_codebook=False,
        )
        # Starting at random and k-means replacing it later lets a new module encode before it has trained.
        self._state.initted.fill_(kmeans_iterations == 0)

    @property
    def codebook(self) -> Tensor:
        """A copy of the codes [K, D] float32, of length 1 if the metric is cosine."""
        return self._codes().clone()

    @torch.no_grad()
    def set_codebook(self, codes: Tensor) -> None:
        """Import codes [K, D] and forget all statistics, so that training goes on from them.

        Raises: ValueError if the shape is not that of this codebook or a code is not finite.
        """
        expected = (self.codebook_sizes[0], self.dim)
        if tuple(codes.shape) != expected or not bool(torch.isfinite(codes).all()):
            raise ValueError(f"vq: expected finite codes {list(expected)}, got {list(codes.shape)}")
        self._set_state(codes.float(), torch.ones(expected[0], device=codes.device))

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Quantized:
        """z [..., D], mask [...] bool -> Quantized; in training the codebook moves after the codes were read."""
        with torch.autocast(z.device.type, enabled=False):
            rows = valid_rows("vq", z, self.dim, mask).float()
            if self.metric == "cosine":
                rows = unit_vectors(rows)
            if self.training:
                self._synchronise()
                self._start(rows.detach())
            codebook = self._codes()
            ids = self._search(rows, codebook)
            codes = codebook[ids]
            commitment = (rows - codes).square().sum() / max(rows.numel(), 1)
            pass_gradient = GRADIENTS[self.gradient] if self.training else straight_through
            embeds = pass_gradient(rows, codes).to(z.dtype)
            stats = {"commitment_loss": commitment.detach(), **batch_usage(ids, self.codebook_sizes[0])}
            if self.training:
                stats["restarts"] = self._update(rows.detach(), ids, codebook)
        lead = z.shape[:-1]
        loss = self.commitment_weight * commitment
        return Quantized(padded(embeds, lead, mask), padded(ids, lead, mask, fill=-1), loss, stats)

    @contextmanager
    def one_update(self) -> Iterator[dict[str, Tensor]]:
        """Training calls inside see one codebook and only add to its averages; it moves once, at the end.

        Gives a dict that has the "restarts" of that move once the block is left.
        """
        self._held, stats = [], dict[str, Tensor]()
        try:
            yield stats
            rows = self._held
        finally:
            self._held = None
        if rows:
            stats["restarts"] = self._move(torch.cat(rows))

    def lookup(self, indices: Tensor) -> Tensor:
        """ids [...] int64 -> codes [..., D] float32, zero where the id is -1. Raises: ValueError for other ids."""
        check_ids("vq", indices, self.codebook_sizes[0])
        return self._codes()[indices.clamp(min=0)].where(indices.unsqueeze(-1) >= 0, 0.0)

    @property
    def _state(self) -> Any:
        return self.library._codebook

    def _codes(self) -> Tensor:
        codes: Tensor = self._state.embed[0].float()
        return unit_vectors(codes) if self.metric == "cosine" else codes

    def _search(self, rows: Tensor, codebook: Tensor) -> Tensor:
        # Codes of cosine are normalised already: a second time would only round them away from what `lookup` gives.
        return nearest_code(rows, codebook, "dot" if self.metric == "cosine" else "l2")

    def _synchronise(self) -> None:
        state = self._state
        running = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
        if state.use_ddp == running:
            return
        state.use_ddp = running
        state.all_reduce_fn = distributed.all_reduce if running else noop
        state.sample_fn = state.replace_sample_fn = sample_vectors_distributed if running else batched_sample_vectors

    def _statistics(self, rows: Tensor, ids: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
        """counts [K] and sums [K, D] of the vectors that each code won, over all processes."""
        found = code_statistics(rows, ids, codebook)
        counts, sums = found.counts.to(rows), found.sums
        self._state.all_reduce_fn(counts)
        self._state.all_reduce_fn(sums)
        return counts, sums

    @torch.no_grad()
    def _start(self, rows: Tensor) -> None:
        state = self._state
        if state.initted:
            return
        total = torch.tensor(len(rows), device=rows.device)
        state.all_reduce_fn(total)
        if not total:
            return
        if total < self.codebook_sizes[0]:
            warnings.warn(
                f"vq: k-means starts {self.codebook_sizes[0]} codes on only {int(total)} vectors, some will be equal; "
                "give a larger first batch",
                stacklevel=3,
            )
        means = state.sample_fn(rows[None], self.codebook_sizes[0])[0]
        counts = means.new_ones(len(means))
        for _ in range(self.kmeans_iterations):
            counts, sums = self._statistics(rows, self._search(rows, means), means)
            moved = sums / counts.clamp(min=1)[:, None]
            moved = unit_vectors(moved) if self.metric == "cosine" else moved
            means = moved.where(counts[:, None] > 0, means)
        self._set_state(means, counts.clamp(min=1))

    def _set_state(self, codes: Tensor, counts: Tensor) -> None:
        """Codes [K, D] with the statistics that keep them there: m = e n, else the first update would undo them."""
        state = self._state
        codes = unit_vectors(codes) if self.metric == "cosine" else codes
        state.embed[0].copy_(codes)
        state.embed_avg[0].copy_(codes * counts[:, None])
        state.cluster_size[0].copy_(counts)
        state.initted.fill_(True)

    @torch.no_grad()
    def _update(self, rows: Tensor, ids: Tensor, codebook: Tensor) -> Tensor:
        """Take the vectors into the averages, move the codes; [] how many dead codes restarted."""
        state = self._state
        counts, sums = self._statistics(rows, ids, codebook)
        state.cluster_size[0].lerp_(counts.to(state.cluster_size), 1 - self.decay)
        state.embed_avg[0].lerp_(sums.to(state.embed_avg), 1 - self.decay)
        if self._held is None:
            return self._move(rows)
        self._held.append(rows)
        return torch.zeros((), device=rows.device)

    @torch.no_grad()
    def _move(self, rows: Tensor) -> Tensor:
        """Set the codes to their averages, restart dead ones at some of rows [T, D]; [] how many did."""
        state = self._state
        state.update_ema()
        if not self._all_have(rows):
            return torch.zeros((), device=rows.device)
        dead: Tensor = (state.cluster_size < state.threshold_ema_dead_code).sum().float()
        state.expire_codes_(rows[None])
        # One process restarts no more codes than it has vectors; several draw from all of theirs.
        return dead if state.use_ddp else dead.clamp(max=len(rows))

    def _all_have(self, rows: Tensor) -> bool:
        """Whether every process has a vector: one that had none would not join the exchange of restarted codes."""
        fewest = torch.tensor(len(rows), device=rows.device)
        if self._state.use_ddp:
            distributed.all_reduce(fewest, distributed.ReduceOp.MIN)
        return bool(fewest > 0)
