"""What pruners at the input ask for beside the tokens: a generator, attention of the tower or of the instruction."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vistok.lvlm.family import Family, decoder_of
from vistok.lvlm.layer_attention import RowAttention
from vistok.lvlm.positions import full_positions
from vistok.lvlm.prompt import Visuals, prompt_of
from vistok.lvlm.tower import TowerAttention
from vistok.protocols import Pruner

SUPPLIED = frozenset({"generator", "attention", "thumbnail", "instruction_attention"})


class Context:
    """Supplies a pruner's `needs` for the images of one prompt: `of_images` by modality, [M, N] each."""

    def __init__(
        self, model: Any, family: Family | None, pruners: Sequence[Pruner], generator: torch.Generator | None
    ) -> None:
        """Raises: ValueError for a need that the model cannot meet."""
        self.model, self.family, self._generator = model, family, generator
        self.needs = frozenset().union(*(pruner.needs for pruner in pruners))
        for pruner in pruners:
            missing = pruner.needs - SUPPLIED
            if missing:
                raise ValueError(
                    f"prune: {type(pruner).__name__} needs {', '.join(sorted(missing))}, which is not supplied; pass "
                    f"it to `vistok.lvlm.prune_inputs`"
                )
        self._tower = TowerAttention(model) if "attention" in self.needs else None

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
    ) -> dict[str, dict[str, Any]]:
        """Context by modality and name; what nobody needs, or the user did not give, is left out."""
        found: dict[str, dict[str, Any]] = {name: {} for name in features}
        for name, values in features.items():
            if self._generator is not None and "generator" in self.needs:
                found[name]["generator"] = self._generator
            if self._tower is not None:
                if set(features) != {"image"}:
                    raise ValueError(
                        "prune: expected images alone where a pruner needs the tower's attention, got a video"
                    )
                found[name]["attention"], thumbnail = self._tower.of(values)
                if thumbnail is not None and "thumbnail" not in self.needs:
                    raise ValueError("prune: expected images in one piece where a pruner needs attention, got crops")
                if thumbnail is not None:
                    found[name]["thumbnail"] = thumbnail
        if "instruction_attention" in self.needs:
            row = self._instruction_attention(inputs, features, visuals)
            for name, visual in visuals.items():
                flat = row[visual.ids >= 0]
                found[name]["instruction_attention"] = pad_sequence(list(flat.split(visual.counts)), batch_first=True)
        return found

    def _instruction_attention(
        self, inputs: Mapping[str, Any], features: Mapping[str, list[Tensor]], visuals: Mapping[str, Visuals]
    ) -> Tensor:
        """[B, n] float32: mean over heads and instruction rows of the first layer's attention in the full prompt."""
        assert self.family is not None
        ids = inputs["input_ids"]
        decoder: Any = decoder_of(self.model)
        hidden = self.model.get_input_embeddings()(ids)
        for name, visual in visuals.items():
            hidden[visual.ids >= 0] = torch.cat(features[name]).to(hidden)
        positions, _ = full_positions(self.model, self.family, inputs, visuals)
        rotation = decoder.rotary_emb(hidden, position_ids=positions[1:] if self.family.mrope else positions)
        prompt = prompt_of(ids, inputs.get("attention_mask"), visuals)
        return RowAttention(decoder.layers[0], hidden, rotation, prompt.valid)(prompt.instruction)
