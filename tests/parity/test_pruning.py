"""Pruners against the original authors' own outputs: kept sets exact, scores to 1e-5."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

import vistok.lvlm
from vistok.lvlm.call import Call
from vistok.ops import transition_score, transition_stats
from vistok.protocols import LayerCut


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected.reshape(actual.shape), rtol=tolerance, atol=tolerance)


@pytest.mark.parity("pruning/transprune_ttv*", lambda config: config["method"] == "transprune_ttv")
def test_transprune_transition(case: Any) -> None:
    data = case.tensors
    numbers = sorted({name.partition(".")[0] for name in data})
    assert len(numbers) == case.config["num_cases"]
    for number in numbers:
        expected = data[f"{number}.ttv"]
        found = transition_score(transition_stats(data[f"{number}.before"], data[f"{number}.after"]))
        # The authors' weights add up to 1 over the whole batch, ours over each item.
        weights = torch.exp(1 - torch.cosine_similarity(data[f"{number}.before"], data[f"{number}.after"], dim=-1))
        close(found * weights.sum(1, keepdim=True) / weights.sum(), expected)


def llama(config: dict[str, Any], weights: dict[str, Tensor]) -> LlamaModel:
    model = LlamaModel(
        LlamaConfig(
            vocab_size=1,
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_hidden_layers=config["num_hidden_layers"],
            num_attention_heads=config["num_attention_heads"],
            num_key_value_heads=config["num_key_value_heads"],
            rms_norm_eps=config["rms_norm_eps"],
            rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]},
            max_position_embeddings=4096,
            pad_token_id=None,
        )
    )
    own = model.state_dict()
    model.load_state_dict({name: weights.get(f"w.{name}", value) for name, value in own.items()})
    assert {f"w.{name}" for name in own if "embed_tokens" not in name} <= set(weights)
    return model.eval()


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Tensor, LayerCut]]:
    """Every cut as it is made: layer, places of the current visual tokens at the decoder's input, the cut."""
    made: list[tuple[int, Tensor, LayerCut]] = []
    original = Call.cut

    def record(self: Call, view: Any, cut: LayerCut, hidden: Tensor) -> Tensor:
        made.append((view.layer, view.source.gather(1, view.slots), cut))
        return original(self, view, cut, hidden)

    monkeypatch.setattr(Call, "cut", record)
    return made


@pytest.mark.parity("pruning/transprune_e2e_*", lambda config: "prune_after_layers_1based" in config)
@torch.no_grad()
def test_transprune_in_a_decoder(case: Any, cuts: list[tuple[int, Tensor, LayerCut]]) -> None:
    config, data = case.config, case.tensors
    begin, images = config["sys_len"], config["n_img"]
    embeds = data["inputs_embeds"]
    visual = torch.zeros(embeds.shape[:2], dtype=torch.bool)
    visual[:, begin : begin + images] = True
    settings = {
        "observe": [layer - 1 for layer in config["accumulate_layers_1based"]],
        "prune_after": [layer - 1 for layer in config["prune_after_layers_1based"]],
        "ratios": config["ratios"],
    }
    model = llama(config, data)
    with vistok.lvlm.prune(model, "transprune", visual=visual, **settings):
        out = model(inputs_embeds=embeds, use_cache=False)
    assert [layer for layer, _, _ in cuts] == settings["prune_after"]
    for stage, (_, places, cut) in enumerate(cuts):
        assert cut.scores is not None
        close(cut.scores[0], data[f"stage{stage}.score"])
        assert cut.index[0].tolist() == data[f"stage{stage}.kept_relative"].tolist()
        assert (places.gather(1, cut.index)[0] - begin).tolist() == data[f"stage{stage}.kept_original"].tolist()
    close(out.last_hidden_state, data["last_hidden_state"], 1e-4)
