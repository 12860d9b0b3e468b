"""VisionZip against the authors' code: the same tokens in the same order."""

from typing import Any

import pytest
import torch

import vistok
from vistok.pruning.visionzip import contextual_tokens, join, strided
from vistok.tokens import TokenSpec, TokenTensor


@pytest.mark.parity("pruning/visionzip*", lambda config: config["method"] == "visionzip")
def test_visionzip(case: Any) -> None:
    numbers = sorted({name.partition(".")[0] for name in case.tensors})
    assert len(numbers) == case.config["num_cases"]
    for number in numbers:
        own = {name.partition(".")[2]: value for name, value in case.tensors.items() if name.startswith(f"{number}.")}
        class_token, patches = own["hidden_states"].split([1, own["hidden_states"].shape[1] - 1], 1)
        attention, keys = own["cls_attention"].mean(1)[:, 1:], own["key_metric"][:, 1:]
        dominant, contextual = own["dominant__contextual"].tolist()
        expected = own["out_tokens"]

        best = attention.sort(dim=1, descending=True, stable=True).indices[:, :dominant]
        assert torch.equal(best + 1, own["dominant_indices_incl_cls"][:, 1:])
        kept = torch.zeros_like(attention, dtype=torch.bool).scatter(1, best, True)
        target = strided(~kept, torch.full((len(kept),), contextual))
        merged, _ = contextual_tokens(patches, target, join(keys, ~kept, target, contextual))
        parts = [class_token, *(merged[mask].unflatten(0, (len(kept), -1)) for mask in (kept, target))]
        torch.testing.assert_close(torch.cat(parts, 1), expected, atol=1e-5, rtol=1e-5)

        budget = dominant + 1 + contextual
        tokens = TokenTensor(TokenSpec("parity", dim=patches.shape[2]), embeds=patches)
        pruner: Any = vistok.pruner("visionzip", contextual=contextual / budget)
        context = {"attention": attention, "tower_keys": keys, "class_token": class_token}
        reduced = pruner.reduce(tokens, budget, **context)
        first = (~(kept | target)).int().argmax(1, keepdim=True)
        places = [first, *(mask.nonzero()[:, 1].unflatten(0, (len(kept), -1)) for mask in (kept, target))]
        order = torch.cat(places, 1).argsort(1)
        assert torch.equal(reduced.source, torch.cat(places, 1).gather(1, order))
        torch.testing.assert_close(
            reduced.embeds, expected.gather(1, order[..., None].expand_as(expected)), atol=1e-5, rtol=1e-5
        )
