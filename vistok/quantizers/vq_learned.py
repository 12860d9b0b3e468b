"""Vector quantization with a codebook that is trained by gradient (arXiv:1711.00937, equation 3).

k = argmin_k |z - e_k|^2;  loss = w_e mean (sg z - e_k)^2 + w_z mean (z - sg e_k)^2, means over all elements.
The paper and LlamaGen: w_e 1, w_z beta. `legacy`: the weights change places, as in the code of taming-transformers,
diffusers, SEED and Chameleon, whose released weights were trained so.

metric "cosine" (LlamaGen, arXiv:2406.06525; ViT-VQGAN, arXiv:2110.04627): vectors and codes are normalised at each use,
the stored codes are not; gradients reach both through the normalisation. entropy_weight (LlamaGen): H_s - H_b of
softmax(-|z - e|^2 / T), streamed by `vistok.ops.code_entropy`: no N x K tensor (ours).
diversity_weight, orthogonal_weight (vector-quantize-pytorch): -w_d diversity + w_o orthogonality of
`vistok.ops.code_spread`, for codebooks of which few codes are used. H_b and diversity are those of the mean over all
processes, so that a run's loss does not depend on how its batch is spread over them.
"""

import torch
from torch import Tensor, nn

from vistok.ops.check_ids import check_ids
from vistok.ops.code_entropy import code_entropy
from vistok.ops.code_spread import code_diversity, orthogonality
from vistok.ops.code_usage import batch_usage
from vistok.ops.nearest_code import nearest_code
from vistok.ops.straight_through import GRADIENTS, straight_through, unit_vectors
from vistok.ops.valid_rows import padded, valid_rows
from vistok.protocols import Quantized
from vistok.registry import register

_METRICS = ("l2", "cosine")


@register
class LearnedVQ(nn.Module):
    """A table of codes [codebook_size, dim] that an optimizer trains; only its own loss gives it a gradient."""

    cannot: frozenset[str] = frozenset()

    def __init__(
        self,
        dim: int = 8,
        codebook_size: int = 16384,
        *,
        metric: str = "l2",
        gradient: str = "straight_through",
        codebook_weight: float = 1.0,
        commitment_weight: float = 0.25,
        legacy: bool = False,
        entropy_weight: float = 0.0,
        temperature: float = 0.01,
        entropy_eps: float = 1e-5,
        diversity_weight: float = 0.0,
        diversity_temperature: float = 100.0,
        orthogonal_weight: float = 0.0,
    ) -> None:
        """metric: "l2" or "cosine". gradient: "straight_through" or "rotation". legacy: beta on the codebook's term.

        temperature: T of the entropy term. entropy_eps: added inside the logarithm of H_b, as LlamaGen does.
        diversity_temperature: multiplies the distances. Terms beside the two losses are computed in training only.
        Raises: ValueError for an unknown metric or gradient, a size below 1, or a temperature that is not positive.
        """
        super().__init__()
        if metric not in _METRICS or gradient not in GRADIENTS:
            raise ValueError(
                f"vq_learned: expected metric in {_METRICS}, gradient in {tuple(GRADIENTS)}, got {metric!r} and "
                f"{gradient!r}"
            )
        if dim < 1 or codebook_size < 1 or temperature <= 0 or entropy_eps < 0:
            raise ValueError(
                f"vq_learned: expected dim and codebook_size >= 1, temperature > 0 and entropy_eps >= 0, got {dim}, "
                f"{codebook_size}, {temperature} and {entropy_eps}"
            )
        self.dim = dim
        self.codebook_sizes: tuple[int, ...] = (codebook_size,)
        self.metric = metric
        self.gradient = gradient
        self.codebook_weight = commitment_weight if legacy else codebook_weight
        self.commitment_weight = codebook_weight if legacy else commitment_weight
        self.entropy_weight = entropy_weight
        self.temperature = temperature
        self.entropy_eps = entropy_eps
        self.diversity_weight = diversity_weight
        self.diversity_temperature = diversity_temperature
        self.orthogonal_weight = orthogonal_weight
        self.embedding = nn.Parameter(torch.empty(codebook_size, dim).uniform_(-1 / codebook_size, 1 / codebook_size))

    @property
    def codebook(self) -> Tensor:
        """The codes [K, D] float32 as they are compared and returned: of length 1 if the metric is cosine."""
        codes: Tensor = self.embedding.float()
        return unit_vectors(codes) if self.metric == "cosine" else codes

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Quantized:
        """z [..., D], mask [...] bool -> Quantized."""
        with torch.autocast(z.device.type, enabled=False):
            rows, codebook = valid_rows("vq_learned", z, self.dim, mask).float(), self.codebook
            if self.metric == "cosine":
                rows = unit_vectors(rows)
            # Codes of cosine are normalised already: a second time would round them away from what `lookup` gives.
            ids = nearest_code(rows, codebook, "dot" if self.metric == "cosine" else "l2")
            codes, count = codebook[ids], max(rows.numel(), 1)
            of_codes = (codes - rows.detach()).square().sum() / count
            commitment = (rows - codes.detach()).square().sum() / count
            loss = self.codebook_weight * of_codes + self.commitment_weight * commitment
            stats = {"commitment_loss": commitment.detach(), **batch_usage(ids, self.codebook_sizes[0])}
            if self.training and self.entropy_weight:
                sample, batch = self._entropies(rows, codebook)
                loss = loss + self.entropy_weight * (sample - batch)
                stats |= {"sample_entropy": sample.detach(), "batch_entropy": batch.detach()}
            if self.training and self.diversity_weight:
                diversity = code_diversity(rows, codebook, self.diversity_temperature, cosine=self.metric == "cosine")
                loss = loss - self.diversity_weight * diversity
                stats["diversity"] = diversity.detach()
            if self.training and self.orthogonal_weight:
                likeness = orthogonality(codebook)
                loss = loss + self.orthogonal_weight * likeness
                stats["orthogonality"] = likeness.detach()
            pass_gradient = GRADIENTS[self.gradient] if self.training else straight_through
            embeds = pass_gradient(rows, codes.detach()).to(z.dtype)
        lead = z.shape[:-1]
        return Quantized(padded(embeds, lead, mask), padded(ids, lead, mask, fill=-1), loss, stats)

    def lookup(self, indices: Tensor) -> Tensor:
        """ids [...] int64 -> codes [..., D] float32, zero where the id is -1. Raises: ValueError for other ids."""
        check_ids("vq_learned", indices, self.codebook_sizes[0])
        return self.codebook[indices.clamp(min=0)].where(indices.unsqueeze(-1) >= 0, 0.0)

    def _entropies(self, rows: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
        """H_s and H_b of softmax(-|z - e|^2 / T): the score [z, 1] . [e, -|e|^2 / 2] at T / 2."""
        scores = torch.cat([codebook, codebook.square().sum(1, keepdim=True) / -2], dim=1)
        vectors = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        return code_entropy(vectors, scores, self.temperature / 2, eps=self.entropy_eps)
