"""What a pruned prompt has cost: tokens per layer, operations by every formula, cache, and the choosing itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vistok.lvlm import flops
from vistok.lvlm.call import Call
from vistok.lvlm.family import Family, visual_features


@dataclass(frozen=True)
class PruneReport:
    """Per item of the batch. tokens, visual: per layer (visual: mean over items); of full_tokens, full_visual before.

    flops, full_flops: prefill by formula, with and without pruning, over all tokens ("exact": 2 per multiplication and
    addition, output head and selection between layers included) and, as "visual_*", over visual tokens alone.
    vision_flops: of the tower and projector, where the report was given the inputs; "exact" then includes them.
    kv_bytes, full_kv_bytes: cache after the prefill. selection_flops: between layers; selection_seconds: on the host,
    at the input and between layers.
    """

    tokens: tuple[int, ...]
    visual: tuple[float, ...]
    full_tokens: int
    full_visual: float
    flops: dict[str, float]
    full_flops: dict[str, float]
    kv_bytes: int
    full_kv_bytes: int
    selection_flops: float
    selection_seconds: float
    vision_flops: float | None = None

    @property
    def mean_visual(self) -> float:
        """Visual tokens per layer on average: equal budgets compare by it."""
        return flops.mean_tokens(self.visual)

    @property
    def kept(self) -> float:
        """`mean_visual` as a fraction of the visual tokens there were."""
        return self.mean_visual / self.full_visual if self.full_visual else 1.0

    def __str__(self) -> str:
        lines = [
            f"visual tokens  {self.full_visual:g} before, {self.mean_visual:.1f} per layer on average, {self.kept:.1%}",
            f"per layer      {' '.join(f'{count:g}' for count in self.visual)}",
            f"cache          {self.kv_bytes / 2**20:.2f} of {self.full_kv_bytes / 2**20:.2f} MiB per item",
            f"selection      {self.selection_flops:.3g} FLOPs between layers, {self.selection_seconds * 1e3:.1f} ms",
        ]
        for name, value in self.flops.items():
            share = value / self.full_flops[name] if self.full_flops[name] else 1.0
            lines.append(f"prefill FLOPs  {name:<18} {value:.4g} of {self.full_flops[name]:.4g} ({share:.1%})")
        return "\n".join(lines)


@torch.no_grad()
def vision_flops(model: Any, family: Family, inputs: Mapping[str, Any]) -> int:
    """Operations of the vision tower and the projector on all images of a batch, 2 per multiplication and addition."""
    # The math kernel is made of products that the counter knows on every device.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        visual_features(model, family, inputs)
    return int(counter.get_total_flops())


def report_of(call: Call, decoder: nn.Module, model: nn.Module, vision: float | None = None) -> PruneReport:
    """The report of one call; vision: operations of the tower per item."""
    shape = decoder_shape(decoder, model)
    tokens = [call.width if s.index is None else s.index.shape[1] for s in (call.segments[i] for i in call.of_layer)]
    means = [float(segment.visual.sum(1).double().mean()) for segment in call.segments]
    visual = [means[number] for number in call.of_layer]
    before = call.full_visual if call.full_visual is not None else means[0]
    batch = len(call.prompt.valid)
    selection = sum(stage.flops for stage in call.stages) / batch
    full = shape.layers * [call.total]
    element = next(decoder.parameters()).element_size()
    return PruneReport(
        tuple(tokens),
        tuple(visual),
        call.total,
        before,
        _by_formula(tokens, visual, shape, selection + (vision or 0.0)),
        _by_formula(full, shape.layers * [before], shape, vision or 0.0),
        int(flops.cache_bytes(tokens, shape, element)),
        int(flops.cache_bytes(full, shape, element)),
        selection,
        call.input_seconds + sum(stage.seconds for stage in call.stages),
        vision,
    )


def _by_formula(tokens: list[int], visual: list[float], shape: flops.DecoderShape, beside: float) -> dict[str, float]:
    found = {name: flops.staged(tokens, shape.hidden, shape.ffn, formula) for name, formula in flops.FORMULAS.items()}
    found |= {
        f"visual_{name}": flops.staged(visual, shape.hidden, shape.ffn, formula)
        for name, formula in flops.FORMULAS.items()
    }
    return found | {"exact": flops.exact_prefill(tokens, shape) + beside}


def decoder_shape(decoder: nn.Module, model: nn.Module) -> flops.DecoderShape:
    """Sizes of a Hugging Face decoder; the vocabulary is 0 where `model` has no output head."""
    config: Any = decoder.config
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    layer: Any = next(iter(decoder.layers))  # type: ignore[arg-type]
    head: Any = getattr(model, "lm_head", None)
    return flops.DecoderShape(
        layers=len(decoder.layers),  # type: ignore[arg-type]
        hidden=config.hidden_size,
        ffn=config.intermediate_size,
        heads=heads,
        kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        vocab=head.weight.shape[0] if head is not None else 0,
        gated=hasattr(layer.mlp, "gate_proj"),
    )
