"""The compressor that ships: it is small, and on scenes of other seeds better than the attention it is given."""

from pathlib import Path
from typing import Any

import pytest
import torch

import vistok
from vistok.weights import weight_file


def test_it_is_small_has_a_card_and_prunes() -> None:
    file = weight_file("embedded:explain_micro")
    assert file.stat().st_size <= 4e5 and "license" in (file.parent / "README.md").read_text(encoding="utf-8")
    pruner: Any = vistok.pruner("explain_micro", pretrained=True)
    attention = torch.rand(2, 144, generator=torch.Generator().manual_seed(0))
    assert pruner(attention).exp().sum(1).tolist() == pytest.approx([1.0, 1.0], abs=1e-4)


@pytest.mark.slow
def test_it_finds_the_most_relevant_quarter_better_than_first_layer_attention_on_unseen_scenes(tmp_path: Path) -> None:
    from vistok.data.scenes.write import SceneSettings, write_scenes
    from vistok.lvlm.load import load_lvlm
    from vistok.train.conversations import read_conversations
    from vistok.train.explain_compressor import overlap
    from vistok.train.relevance_pairs import cached_pairs

    write_scenes(tmp_path / "scenes", SceneSettings(150, "validation", 0, 96, 4, False, False), None)
    pairs = cached_pairs(
        tmp_path / "pairs",
        {"prompt": None, "answer": "{answer}"},
        lambda: read_conversations(str(tmp_path / "scenes" / "conversations.jsonl")),
        lambda: load_lvlm("micro_lvlm"),
        wanted=500,
        batch=16,
    )
    attention, relevance = torch.stack(pairs.attention), torch.stack(pairs.relevance)
    everything = torch.ones_like(attention, dtype=torch.bool)
    pruner: Any = vistok.pruner("explain_micro", pretrained=True)
    with torch.inference_mode():
        predicted = overlap(pruner.eval()(attention), relevance, everything, 0.25).mean()
    assert predicted > overlap(attention, relevance, everything, 0.25).mean() + 0.01
