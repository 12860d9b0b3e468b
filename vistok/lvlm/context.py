"""What pruners at the input ask for beside the tokens: the vision tower, the instruction, frames, a generator.

B items, n tokens, M images of N visual tokens, T instruction tokens, D.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vistok.lvlm.family import Family, decoder_of
from vistok.lvlm.layer_attention import RowAttention
from vistok.lvlm.positions import full_positions
from vistok.lvlm.prompt import Prompt, Visuals, prompt_of
from vistok.lvlm.tower import TowerSpace, TowerWatch
from vistok.protocols import Pruner

_TOWER = frozenset({"attention", "thumbnail", "tower_keys", "class_token"})
_TEXT = frozenset({"text", "text_mask", "instruction_attention"})
SUPPLIED = _TOWER | _TEXT | {"generator", "frames"}
# Of a whole image, not of each of its tokens.
PER_IMAGE = frozenset({"class_token", "text", "text_mask"})


class Supply(NamedTuple):
    """For the images of one modality: context by name, [M, N, ...], or [M, ...] of PER_IMAGE; the tower's space."""

    context: dict[str, Any]
    tower: TowerSpace | None = None


def reads_tower(pruner: object) -> bool:
    """Whether the vision tower must run under a pruner's eyes, so that pixels have to come in, not features."""
    return isinstance(pruner, Pruner) and (bool(pruner.needs & _TOWER) or _works_in_tower(pruner))


def _works_in_tower(pruner: Pruner) -> bool:
    return getattr(pruner, "space", "projected") == "tower"


class Context:
    """Supplies a pruner's `needs` for the images of one prompt: `of_images` by modality."""

    def __init__(
        self, model: Any, family: Family | None, pruners: Sequence[Pruner], generator: torch.Generator | None
    ) -> None:
        """Raises: ValueError for a need that the model cannot meet, or pruners that look at different layers."""
        self.model, self.family, self._generator = model, family, generator
        self.needs = frozenset().union(*(pruner.needs for pruner in pruners))
        for pruner in pruners:
            missing = pruner.needs - SUPPLIED
            if missing:
                raise ValueError(
                    f"prune: {type(pruner).__name__} needs {', '.join(sorted(missing))}, which is not supplied; pass "
                    f"it to `vistok.lvlm.prune_inputs`"
                )
        layers = {getattr(pruner, "tower_layer", -1) for pruner in pruners if reads_tower(pruner)}
        if len(layers) > 1:
            raise ValueError(
                f"prune: expected pruners at the input that look at one layer of the tower, got {sorted(layers)}"
            )
        self._tower = TowerWatch(model, layers.pop()) if layers else None
        self._in_tower = bool(pruners) and _works_in_tower(pruners[0])

    def attach(self) -> None:
        """Register the hooks."""
        if self._tower is not None:
            self._tower.attach()

    def remove(self) -> None:
        """Remove the hooks."""
        if self._tower is not None:
            self._tower.remove()

    @torch.no_grad()
    def of_images(
        self, inputs: Mapping[str, Any], features: Mapping[str, list[Tensor]], visuals: Mapping[str, Visuals]
    ) -> dict[str, Supply]:
        """Supplies by modality; what nobody needs, or the user did not give, is left out."""
        found = {name: Supply({}) for name in features}
        if self._tower is not None:
            if len(features) > 1:
                raise ValueError("prune: expected images or videos where a pruner needs the vision tower, got both")
            for name, values in features.items():
                found[name] = self._of_tower(self._tower, name, values)
        for name, values in features.items():
            if self._generator is not None and "generator" in self.needs:
                found[name].context["generator"] = self._generator
            if "frames" in self.needs:
                rows = [row.to(values[0].device) for row in self._frames(name, values, inputs)]
                found[name].context["frames"] = pad_sequence(rows, batch_first=True, padding_value=-1)
        if self.needs & _TEXT:
            self._add_text(found, inputs, features, visuals)
        return found

    def _of_tower(self, tower: TowerWatch, name: str, values: list[Tensor]) -> Supply:
        context: dict[str, Any] = {}
        if "attention" in self.needs:
            context["attention"] = tower.attention(name, values)
        if "tower_keys" in self.needs:
            context["tower_keys"] = tower.keys(name, values)
        if "thumbnail" in self.needs:
            context["thumbnail"] = tower.thumbnail(values)
        if "class_token" in self.needs and self._in_tower:
            context["class_token"] = tower.class_token(values)
        given = {need: value for need, value in context.items() if value is not None}
        return Supply(given, tower.space(values) if self._in_tower else None)

    def _frames(self, name: str, values: list[Tensor], inputs: Mapping[str, Any]) -> list[Tensor]:
        """The frame [N] int64 of every token, -1 for the newline behind a video."""
        counts = [len(value) for value in values]
        if name != "video":
            return [torch.zeros(count, dtype=torch.int64) for count in counts]
        if inputs.get("video_grid_thw") is not None:
            frames = inputs["video_grid_thw"][:, 0].tolist()
            return [torch.arange(count) // (count // t) for count, t in zip(counts, frames, strict=True)]
        config = self.model.config.vision_config
        side = -(-(config.image_size // config.patch_size) // 2)  # pooled to half, rounded up
        rows = [torch.arange(count) // side**2 for count in counts]
        return [torch.where(torch.arange(len(row)) < len(row) - 1, row, -1) for row in rows]

    def _add_text(
        self,
        found: Mapping[str, Supply],
        inputs: Mapping[str, Any],
        features: Mapping[str, list[Tensor]],
        visuals: Mapping[str, Visuals],
    ) -> None:
        """Put what the instruction says, and looks at, into the supplies."""
        ids = inputs["input_ids"]
        prompt = prompt_of(ids, inputs.get("attention_mask"), visuals)
        hidden = self.model.get_input_embeddings()(ids)
        words = [row[own] for row, own in zip(hidden, prompt.instruction, strict=True)]
        text = pad_sequence(words, batch_first=True)
        spoken = torch.arange(text.shape[1], device=ids.device) < prompt.instruction.sum(1, keepdim=True)
        row = (
            self._first_attention(prompt, hidden, inputs, features, visuals)
            if "instruction_attention" in self.needs
            else None
        )
        for name, visual in visuals.items():
            counts = torch.tensor(visual.counts, device=ids.device)
            begins = counts.cumsum(0) - counts
            items = (visual.ids >= 0).nonzero()[:, 0][begins]  # of the first token of every image
            found[name].context.update({"text": text[items], "text_mask": spoken[items]})
            if row is not None:
                flat = row[visual.ids >= 0]
                found[name].context["instruction_attention"] = pad_sequence(
                    list(flat.split(visual.counts)), batch_first=True
                )

    def _first_attention(
        self,
        prompt: Prompt,
        hidden: Tensor,
        inputs: Mapping[str, Any],
        features: Mapping[str, list[Tensor]],
        visuals: Mapping[str, Visuals],
    ) -> Tensor:
        """[B, n] float32: mean over heads and instruction rows of the first layer's attention in the full prompt."""
        assert self.family is not None
        decoder: Any = decoder_of(self.model)
        for name, visual in visuals.items():
            hidden[visual.ids >= 0] = torch.cat(features[name]).to(hidden)
        positions, _ = full_positions(self.model, self.family, inputs, visuals)
        rotation = decoder.rotary_emb(hidden, position_ids=positions[1:] if self.family.mrope else positions)
        return RowAttention(decoder.layers[0], hidden, rotation, prompt.valid)(prompt.instruction)
