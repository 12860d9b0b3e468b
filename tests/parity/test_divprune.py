"""DivPrune against the authors' code: the same picks in the same order."""

from typing import Any

import pytest
import torch

import vistok
from vistok.ops import k_center
from vistok.pruning.divprune import loneliest
from vistok.tokens import TokenSpec, TokenTensor


@pytest.mark.parity("pruning/divprune*", lambda config: config["method"] == "divprune")
def test_divprune(case: Any) -> None:
    numbers = sorted({name.partition(".")[0] for name in case.tensors})
    assert len(numbers) == case.config["num_cases"]
    pruner: Any = vistok.pruner("divprune")
    for number in numbers:
        features = case.tensors[f"{number}.features"].float()[None]
        expected = case.tensors[f"{number}.selected_in_order"].tolist()
        valid = torch.ones(features.shape[:2], dtype=torch.bool)
        picks = k_center(features, len(expected), "cosine", start=loneliest(features, valid)).indices
        assert picks[0].tolist() == expected
        tokens = TokenTensor(TokenSpec("parity", dim=features.shape[2]), embeds=features)
        ratio = float(case.tensors[f"{number}.ratio"])
        assert pruner.select(tokens, ratio).index[0].tolist() == sorted(expected)
        for budget in (1, 2, len(expected) // 2):
            assert pruner.select(tokens, budget).index[0].tolist() == sorted(expected[:budget])
