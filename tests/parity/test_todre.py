"""Stage 1 of ToDRE against a float64 run of the published pseudocode: the same picks in the same order."""

from collections.abc import Iterator
from typing import Any

import pytest
from torch import Tensor

import vistok
from vistok.tokens import TokenSpec, TokenTensor

FIELDS = {"todre": "maxsum_in_order", "todre_v1": "kcenter_in_order"}


def cases(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The tensors of every case of a file, without their "0." and so on."""
    for prefix in sorted({name.partition(".")[0] for name in tensors}, key=int):
        yield {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parity("pruning/todre_*", lambda config: True)
def test_todre(case: Any, name: str) -> None:
    pruner: Any = vistok.pruner(name)
    for data in cases(case.tensors):
        features, k = data["features"].float()[None], int(data["k"])
        expected = data[FIELDS[name]].tolist()
        assert len(expected) == k
        tokens = TokenTensor(TokenSpec("parity", dim=features.shape[2]), embeds=features)
        # What a smaller budget keeps are the first picks, so all budgets together tell the order.
        for budget in range(1, k + 1):
            kept = pruner.select(tokens, budget, attention=data["cls_attention"].float()[None]).index[0]
            assert kept.tolist() == sorted(expected[:budget])
