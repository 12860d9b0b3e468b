"""An adapter in a file and in the model: the same weights to half precision."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from vistok.lvlm.low_rank_files import export_low_rank, merge_low_rank

from .vocabulary_fixtures import llama

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def adapted(alpha=6):
    model = get_peft_model(llama(), LoraConfig(r=2, lora_alpha=alpha, target_modules=["q_proj", "down_proj"]))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_merging_a_file_gives_what_peft_merges(tmp_path):
    trained, plain = adapted(), llama()
    export_low_rank(tmp_path / "a.safetensors", trained)
    merge_low_rank(tmp_path / "a.safetensors", plain)
    merged = trained.merge_and_unload()
    changed = 0
    for name, weight in plain.state_dict().items():
        own = merged.state_dict()[name]
        assert torch.allclose(weight, own, atol=2e-3)
        changed += not torch.equal(weight, llama().state_dict()[name])
    assert changed == 4, "two modules of two layers"


def test_files_that_do_not_fit_change_nothing_and_are_named(tmp_path):
    with pytest.raises(ValueError, match="expected a PEFT model with LoRA adapter 'default'"):
        export_low_rank(tmp_path / "a.safetensors", llama())
    with pytest.raises(FileNotFoundError, match="none.safetensors: expected a file that export_low_rank wrote"):
        merge_low_rank(tmp_path / "none.safetensors", llama())
    save_file({"x.A": torch.zeros(1)}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="of format vistok.low_rank.1, got None"):
        merge_low_rank(tmp_path / "b.safetensors", llama())
    good = {"model.layers.0.mlp.up_proj.A": torch.ones(1, 16), "model.layers.0.mlp.up_proj.B": torch.ones(24, 1)}
    bad = {"model.layers.9.mlp.up_proj.A": torch.ones(1, 16), "model.layers.9.mlp.up_proj.B": torch.ones(24, 1)}
    save_file(good | bad, tmp_path / "c.safetensors", {"format": "vistok.low_rank.1"})
    model = llama()
    with pytest.raises(ValueError, match=r"expected the model to have model.layers.9.mlp.up_proj .* got none"):
        merge_low_rank(tmp_path / "c.safetensors", model)
    assert all(torch.equal(value, llama().state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("other", [{}, {"lm_head.A": torch.ones(3, 16)}])
def test_a_matrix_without_its_partner_is_named(tmp_path, other):
    save_file({"lm_head.B": torch.ones(24, 2)} | other, tmp_path / "a.safetensors", {"format": "vistok.low_rank.1"})
    with pytest.raises(ValueError, match=r"expected lm_head.A \[r, in\] and lm_head.B \[out, r\]"):
        merge_low_rank(tmp_path / "a.safetensors", llama())
