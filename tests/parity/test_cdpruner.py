"""CDPruner against the authors' code: the same kept sets."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import vistok
from vistok.pruning._dpp import greedy_dpp
from vistok.pruning.cdpruner import text_cosine
from vistok.tokens import TokenSpec, TokenTensor


@pytest.mark.parity("pruning/cdpruner*", lambda config: config["method"] == "cdpruner")
def test_cdpruner(case: Any) -> None:
    numbers = sorted({name.partition(".")[0] for name in case.tensors})
    assert len(numbers) == case.config["num_cases"]
    for number in numbers:
        own = {name.partition(".")[2]: value for name, value in case.tensors.items() if name.startswith(f"{number}.")}
        features, image_embeds = own["features"], own["image_embeds"]
        text = own["text_embeds"].expand(len(features), -1, -1)
        k = int(own["num_keep"])
        found = picks_with_one_scale(features, image_embeds, text, k)
        assert torch.equal(torch.zeros_like(own["keep_mask"]).scatter(1, found, True), own["keep_mask"])
        if len(features) == 1:  # there the scale of the batch is that of the item
            tokens = TokenTensor(TokenSpec("parity", dim=features.shape[2]), embeds=features)
            chosen = vistok.pruner("cdpruner").select(tokens, k, text=text, image_embeds=image_embeds)
            assert chosen.index[0].tolist() == own["keep_mask"][0].nonzero()[:, 0].tolist()


def picks_with_one_scale(features: Tensor, image_embeds: Tensor, text: Tensor, k: int) -> Tensor:
    """As the authors do it: the least and the largest relevance are those of the whole batch."""
    valid = torch.ones(features.shape[:2], dtype=torch.bool)
    relevance = -text_cosine(image_embeds, text, valid)
    quality = (relevance - relevance.min() + 1e-6) / (relevance.max() - relevance.min())
    return greedy_dpp(normalize(features, dim=2), quality, k, valid)
