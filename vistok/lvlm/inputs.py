"""Fewer visual tokens at the input of a language model, by arguments that its `forward` and `generate` take anyway.

The features are computed first, a pruner chooses among those of each image, and the placeholders of the others leave
`input_ids`; what was kept goes in as `mm_encoder_outputs`. B items, n tokens, n' kept ones, M images, N features, D.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vistok.lvlm.context import PER_IMAGE, Context, Supply
from vistok.lvlm.family import Family, family_of, visual_features
from vistok.lvlm.positions import full_positions, gathered_positions
from vistok.lvlm.prompt import Visuals, locate
from vistok.protocols import Budget, Pruner, TowerMerger
from vistok.rows import take_rows
from vistok.tokens import TokenSpec, TokenTensor

# Arguments [B, n] that are cut with the tokens, and what stands where a shorter item is padded.
FILLED: dict[str, int] = {"attention_mask": 0, "mm_token_type_ids": 0, "token_type_ids": 0, "labels": -100}


@dataclass(frozen=True, eq=False)
class Pruned:
    """Arguments of a call after the cut. index [B, n'] int64: places kept; dead [B, n'] bool: padding among them.

    tokens: kept tokens of every image by modality; `source` are places among the image's own. dropped
    [B, 1]: visual tokens taken; deltas [B, 1]: what mRoPE adds to the count of tokens that follow.
    """

    arguments: dict[str, Any]
    visuals: dict[str, Visuals]
    index: Tensor
    dead: Tensor
    tokens: dict[str, TokenTensor]
    dropped: Tensor
    deltas: Tensor | None = None

    def log_sizes(self) -> Tensor | None:
        """[B, n'] float32: log of the tokens that each visual token stands for, 0 elsewhere; None if none is merged."""
        found = None
        for name, visual in self.visuals.items():
            tokens = self.tokens[name]
            if tokens.sizes is not None:
                logs = tokens.sizes[tokens.mask].float().log()[visual.ids.clamp(min=0)]
                found = torch.zeros_like(logs) if found is None else found
                found = torch.where(visual.ids >= 0, logs, found)
        return found


def prune_inputs(
    model: nn.Module,
    pruner: Pruner,
    inputs: Mapping[str, Any],
    *,
    budget: Budget,
    positions: str = "keep",
    **context: Any,
) -> dict[str, Any]:
    """Inputs for `model.generate(**result)` or `model(**result)` with fewer visual tokens.

    inputs: as the model's processor makes them. budget: tokens per image, or a fraction of them. positions: "keep"
    those of the full prompt, or "reindex". context: of what the pruner needs, what is not to be read off the model:
    [M, ...] over the images of the batch, or a generator.
    Items that come out shorter than others are padded on the left. Merged tokens weigh as much as others here: no
    argument of the model's says otherwise.
    Raises: ValueError if the model's class is unknown, there are no visual inputs, or inputs disagree; TypeError for
    context that the pruner does not take.
    """
    family = family_of(model)
    if not isinstance(pruner, Pruner):
        raise ValueError(f"prune_inputs: expected a pruner with `select`, got {type(pruner).__name__}; use `prune`")
    if isinstance(pruner, TowerMerger) and pruner.merges_in_tower:
        raise ValueError("prune_inputs: expected a pruner at the input, got one inside the vision tower; use `prune`")
    unknown = set(context) - pruner.needs
    if unknown:
        raise TypeError(f"prune_inputs: {type(pruner).__name__} takes no {', '.join(sorted(unknown))}")
    supply = None if pruner.needs <= set(context) else Context(model, family, [pruner], None)
    if supply is not None:
        supply.attach()
    try:
        features = visual_features(model, family, inputs)
        if not features:
            raise ValueError("prune_inputs: expected pixel_values, pixel_values_videos or mm_encoder_outputs, got none")
        visuals = locate(model.config, family, inputs["input_ids"], features)
        supplied = {} if supply is None else supply.of_images(inputs, features, visuals)
    finally:
        if supply is not None:
            supply.remove()
    tokens = {}
    for name, values in features.items():
        own = supplied.get(name, Supply({}))
        tokens[name] = reduced([pruner], as_tokens(values), [budget], own._replace(context=own.context | context))
    return cut_inputs(model, family, inputs, visuals, tokens, positions).arguments


def as_tokens(features: Sequence[Tensor]) -> TokenTensor:
    """Features [N_i, D] of M images side by side."""
    lengths = torch.tensor([len(value) for value in features], device=features[0].device)
    ragged = len({len(value) for value in features}) > 1
    spec = TokenSpec("features", dim=features[0].shape[-1])
    return TokenTensor(spec, embeds=pad_sequence(list(features), batch_first=True), lengths=lengths if ragged else None)


def reduced(
    pruners: Sequence[Pruner], tokens: TokenTensor, budgets: Sequence[Budget | None], supply: Supply
) -> TokenTensor:
    """The tokens of M images after one pruner or several in a row, `source` ascending.

    supply: of which every pruner gets what it needs of the tokens it sees. Where it holds the tower's space, the first
    pruner works there, and what it leaves goes through the projector.
    """
    for number, (pruner, budget) in enumerate(zip(pruners, budgets, strict=True)):
        if budget is None:
            raise ValueError(f"prune: expected a budget for {type(pruner).__name__}, which prunes at the input")
        context = {name: value for name, value in supply.context.items() if name in pruner.needs}
        if number == 0 and supply.tower is not None:
            tokens = _after(pruner, as_tokens(supply.tower.states), budget, context)
            assert tokens.embeds is not None
            embeds = supply.tower.project(tokens.embeds)
            tokens = tokens.replace(spec=replace(tokens.spec, dim=embeds.shape[-1]), embeds=embeds)
        else:
            tokens = _after(pruner, tokens, budget, context)
    if tokens.source is None:
        tokens = tokens.replace(source=torch.arange(tokens.num_slots, device=tokens.device).expand(tokens.mask.shape))
    return tokens


def _after(pruner: Pruner, tokens: TokenTensor, budget: Budget, context: Mapping[str, Any]) -> TokenTensor:
    given = {name: value if name in PER_IMAGE else _of_tokens(value, tokens) for name, value in context.items()}
    reduce = getattr(pruner, "reduce", None)
    if reduce is not None:
        return _in_order(reduce(tokens, budget, **given))
    return tokens.select(pruner.select(tokens, budget, **given))


def _of_tokens(value: Any, tokens: TokenTensor) -> Any:
    """Context [M, N, ...] of the images' own tokens at those that an earlier pruner has left."""
    per_token = isinstance(value, Tensor) and value.ndim > 1
    return take_rows(value, tokens.source) if per_token and tokens.source is not None else value


def _in_order(tokens: TokenTensor) -> TokenTensor:
    """Valid tokens by ascending `source`: a merged token stands where its own place was."""
    assert tokens.source is not None
    order = tokens.source.masked_fill(~tokens.mask, torch.iinfo(torch.int64).max).argsort(dim=1, stable=True)
    return tokens.map(lambda value: take_rows(value, order) if value.ndim > 1 else value)


def cut_inputs(
    model: nn.Module,
    family: Family,
    inputs: Mapping[str, Any],
    visuals: Mapping[str, Visuals],
    tokens: Mapping[str, TokenTensor],
    positions: str,
) -> Pruned:
    """The arguments that say the same with only `tokens` left of every image."""
    ids: Tensor = inputs["input_ids"]
    kept = torch.ones_like(ids, dtype=torch.bool)
    for name, visual in visuals.items():
        kept &= (visual.ids < 0) | _kept_features(tokens[name], visual.counts)[visual.ids.clamp(min=0)]
    mask: Tensor = inputs["attention_mask"] if inputs.get("attention_mask") is not None else torch.ones_like(ids)
    index, dead = _left_padded(kept, mask.bool())
    full, deltas = full_positions(model, family, inputs, visuals)
    arguments = {name: value for name, value in inputs.items() if name not in _consumed(family)}
    arguments |= {
        name: inputs[name].gather(1, index).masked_fill(dead, fill)
        for name, fill in FILLED.items()
        if isinstance(inputs.get(name), Tensor)
    }
    arguments["input_ids"] = ids.gather(1, index).masked_fill(dead, _padding_id(model, family))
    arguments["attention_mask"] = mask.gather(1, index).masked_fill(dead, 0)
    arguments["position_ids"] = gathered_positions(full, index, kept, positions, family.mrope)
    kept_features = {name: _each(value) for name, value in tokens.items()}
    arguments = with_features(arguments, family, kept_features)
    dropped = (~kept).sum(1, keepdim=True)
    return Pruned(arguments, _relocated(visuals, tokens, index, dead), index, dead, dict(tokens), dropped, deltas)


def _consumed(family: Family) -> set[str]:
    """Arguments that speak of pixels, and of positions that are given explicitly from here on."""
    pixels = {modality.pixels for modality in family.modalities.values()}
    return pixels | {"image_grid_thw", "video_grid_thw", "image_sizes", "image_sizes_videos", "batch_num_images"}


def _kept_features(tokens: TokenTensor, counts: list[int]) -> Tensor:
    """[F] bool over the features of all images, one after the other."""
    starts = torch.tensor([0, *counts], device=tokens.device).cumsum(0)[:-1]
    kept = torch.zeros(sum(counts), dtype=torch.bool, device=tokens.device)
    assert tokens.source is not None
    kept[(tokens.source + starts[:, None])[tokens.mask]] = True
    if int(kept.sum()) != int(tokens.mask.sum()):
        raise ValueError("prune: expected every kept token at a place (`source`) of its own, got two at one place")
    return kept


def _left_padded(kept: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Places [B, n'] of what is kept and valid, the shorter items padded on the left, and where that padding is."""
    alive = kept & valid
    width = int(alive.sum(1).max())
    index = alive.to(torch.int8).sort(dim=1, stable=True).indices[:, kept.shape[1] - width :]
    return index, ~alive.gather(1, index)


def _padding_id(model: nn.Module, family: Family) -> int:
    config: Any = model.config
    text = config.get_text_config()
    placeholders = {getattr(config, modality.placeholder) for modality in family.modalities.values()}
    candidates: tuple[int | None, ...] = (getattr(text, "pad_token_id", None), 0, *range(1, len(placeholders) + 1))
    return next(token for token in candidates if token is not None and token not in placeholders)


def _each(tokens: TokenTensor) -> list[Tensor]:
    """Valid embeds of every image [N'_i, D]."""
    assert tokens.embeds is not None
    return [row[:length] for row, length in zip(tokens.embeds, tokens.valid_lengths.tolist(), strict=True)]


def with_features(arguments: Mapping[str, Any], family: Family, features: Mapping[str, list[Tensor]]) -> dict[str, Any]:
    """The same arguments with features [N_i, D] in the place of pixels."""
    pixels = {modality.pixels for modality in family.modalities.values()}
    rest = {name: value for name, value in arguments.items() if name not in pixels}
    if not features:
        return rest
    outputs = {
        name: BaseModelOutputWithPooling(
            pooler_output=torch.cat(values)[None] if name in family.stacked else values  # type: ignore[arg-type]
        )
        for name, values in features.items()
    }
    return rest | {"mm_encoder_outputs": outputs}


def _relocated(
    visuals: Mapping[str, Visuals], tokens: Mapping[str, TokenTensor], index: Tensor, dead: Tensor
) -> dict[str, Visuals]:
    found = {}
    for name, visual in visuals.items():
        here = (visual.ids.gather(1, index) >= 0) & ~dead
        order = here.flatten().cumsum(0).reshape(here.shape) - 1
        found[name] = Visuals(torch.where(here, order, -1), tokens[name].valid_lengths.tolist())
    return found
