"""The codebooks of AiT's VQ-VAE (arXiv:2301.02229): moving averages, or codes that learn by gradient.

k = argmin_k |z - e_k|^2;  zq = z + sg(e_k - z);  loss = beta mean (z - sg e_k)^2. Training, behind the look-up:
N <- g N + (1-g) n,  N <- (N + eps) / (sum N + K eps) sum N,  m <- g m + (1-g) sum_{z->k} z,  e = m / N.
The smoothed N is what the next step goes on from, unlike in arXiv:1711.00937. N vectors, K codes, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistok.ops.check_ids import check_ids
from vistok.ops.code_statistics import code_statistics
from vistok.ops.nearest_code import nearest_code
from vistok.ops.straight_through import straight_through
from vistok.protocols import Quantized

STARTS = ("kmeans", "official")
_ITERATIONS = 10


class MovingCodes(nn.Module):
    """Codes [K, D] that follow the vectors they win; `_embedding`, `_ema_cluster_size`, `_ema_w` as their authors named
    them.

    The authors' start draws e and m independently and N = 0: a code that wins nothing in the first step has N ~ 1e-5
    behind it and e = m / N ~ 1e5, from where it never returns. "kmeans" starts e at cluster means of the first
    training batch, with m = e and N = 1, and sets a code whose N stays below 1 for `revive_after` steps to a vector of
    the batch. "official" is the authors' start, without revival. Loaded codes are never started anew.
    """

    _embedding: Tensor
    _ema_cluster_size: Tensor
    _ema_w: Tensor
    idle: Tensor
    started: Tensor

    def __init__(
        self,
        codes: int,
        dim: int,
        *,
        commitment: float = 0.25,
        decay: float = 0.99,
        init: str = "kmeans",
        revive_after: int = 100,
        eps: float = 1e-5,
    ) -> None:
        """revive_after: 0 = never. Raises: ValueError for an unknown init, or a size or decay out of range."""
        super().__init__()
        if init not in STARTS or codes < 1 or dim < 1 or not 0 < decay < 1:
            raise ValueError(
                f"moving codes: expected init in {STARTS}, codes and dim >= 1, decay between 0 and 1, got {init!r}, "
                f"{codes}, {dim}, {decay}"
            )
        self.commitment, self.decay, self.eps = commitment, decay, eps
        self.revive_after = revive_after if init == "kmeans" else 0
        self.register_buffer("_embedding", torch.randn(codes, dim))
        self.register_buffer("_ema_cluster_size", torch.zeros(codes))
        self.register_buffer("_ema_w", torch.randn(codes, dim))
        # Not in the authors' files, hence not in ours; a run that goes on keeps them apart.
        self.register_buffer("idle", torch.zeros(codes, dtype=torch.int64), persistent=False)
        self.register_buffer("started", torch.tensor(init == "official"), persistent=False)
        self.register_load_state_dict_post_hook(_loaded)  # type: ignore[no-untyped-call]

    @property
    def codebook(self) -> Tensor:
        """The codes [K, D] float32."""
        return self._embedding.float()

    def forward(self, z: Tensor) -> Quantized:
        """z [..., D] -> Quantized in float32; in training the codes move after they were read."""
        rows = z.detach().float().reshape(-1, z.shape[-1])
        if self.training and not bool(self.started):
            self._start(rows)
        out = _quantized(z, self.codebook, self.commitment)
        if self.training:
            revived = self._follow(rows, out.indices.reshape(-1))
            return out._replace(stats={**out.stats, "restarts": revived})
        return out

    def lookup(self, indices: Tensor) -> Tensor:
        """indices [...] int64 -> codes [..., D] float32. Raises: ValueError for ids outside 0..K-1."""
        return _looked_up(self.codebook, indices)

    @torch.no_grad()
    def _start(self, rows: Tensor) -> None:
        """k-means over rows [N, D]; codes that win none stay at the vector they began at."""
        codes = len(self._embedding)
        order = torch.randperm(len(rows), device=rows.device)
        means = rows[order.repeat(-(-codes // len(rows)))[:codes]]
        for _ in range(_ITERATIONS):
            found = code_statistics(rows, nearest_code(rows, means), means)
            moved = found.sums / found.counts.clamp(min=1)[:, None]
            means = moved.where(found.counts[:, None] > 0, means)
        self._set(slice(None), means)
        self.started.fill_(True)

    @torch.no_grad()
    def _follow(self, rows: Tensor, ids: Tensor) -> Tensor:
        """One step of the averages; [] how many codes were set to a vector of the batch."""
        found = code_statistics(rows, ids, self.codebook)
        counts = self._ema_cluster_size * self.decay + (1 - self.decay) * found.counts
        total = counts.sum()
        counts = (counts + self.eps) / (total + len(counts) * self.eps) * total
        self._ema_cluster_size.copy_(counts)
        self._ema_w.mul_(self.decay).add_(found.sums, alpha=1 - self.decay)
        self._embedding.copy_(self._ema_w / counts[:, None])
        if not self.revive_after:
            return rows.new_zeros(())
        self.idle.copy_((self.idle + 1) * (counts < 1))
        dead = (self.idle >= self.revive_after).nonzero()[:, 0]
        if len(dead):
            self._set(dead, rows[torch.randint(len(rows), (len(dead),), device=rows.device)])
        return torch.tensor(float(len(dead)), device=rows.device)

    def _set(self, which: Tensor | slice, codes: Tensor) -> None:
        """Codes with the statistics that keep them there, else the next step would undo them."""
        self._embedding[which] = codes.to(self._embedding)
        self._ema_w[which] = codes.to(self._ema_w)
        self._ema_cluster_size[which] = 1.0
        self.idle[which] = 0


class LearnedCodes(nn.Module):
    """Codes [K, D] with a gradient of their own: loss = mean (e_k - sg z)^2 + beta mean (z - sg e_k)^2.

    Key `_embedding.weight`, as its authors named it.
    """

    def __init__(self, codes: int, dim: int, *, commitment: float = 0.25) -> None:
        super().__init__()
        self.commitment = commitment
        self._embedding = nn.Embedding(codes, dim)
        nn.init.uniform_(self._embedding.weight, -1 / codes, 1 / codes)

    @property
    def codebook(self) -> Tensor:
        """The codes [K, D] float32."""
        return self._embedding.weight.float()

    def forward(self, z: Tensor) -> Quantized:
        """z [..., D] -> Quantized in float32."""
        out = _quantized(z, self.codebook, self.commitment)
        towards = F.mse_loss(self.codebook[out.indices], z.detach().float())
        return out._replace(loss=out.loss + towards, stats={**out.stats, "codebook_loss": towards.detach()})

    def lookup(self, indices: Tensor) -> Tensor:
        """indices [...] int64 -> codes [..., D] float32. Raises: ValueError for ids outside 0..K-1."""
        return _looked_up(self.codebook, indices)


def _loaded(module: nn.Module, keys: object) -> None:
    assert isinstance(module, MovingCodes)
    module.started.fill_(True)


def _quantized(z: Tensor, codebook: Tensor, commitment: float) -> Quantized:
    z = z.float()
    ids = nearest_code(z, codebook)
    chosen = codebook.detach()[ids]
    distance = F.mse_loss(z, chosen)
    return Quantized(straight_through(z, chosen), ids, commitment * distance, {"commitment_loss": distance.detach()})


def _looked_up(codebook: Tensor, indices: Tensor) -> Tensor:
    if not torch.compiler.is_compiling() and indices.numel() and int(indices.min()) < 0:
        raise ValueError(f"codes: expected ids in 0..{len(codebook) - 1}, got {int(indices.min())}")
    check_ids("codes", indices, len(codebook))
    return codebook[indices]
