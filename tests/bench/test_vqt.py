import pytest
import torch

from vistok.bench._saved_bytes import saved_bytes
from vistok.bench.vqt import COLUMNS, FULL, LORA, run


def test_every_storage_is_counted_once_and_known_ones_not_at_all() -> None:
    weight, x = torch.randn(3, 5, requires_grad=True), torch.randn(7, 3)

    def forward() -> torch.Tensor:
        hidden = (x @ weight).exp()  # saves x and weight, which are known, and its own result
        return (hidden * hidden).sum()  # saves that result again

    assert saved_bytes(forward, [weight, x]) == 7 * 5 * 4
    assert saved_bytes(forward, [weight]) == 7 * 5 * 4 + 7 * 3 * 4


def test_every_way_to_tune_is_measured_with_vqt_first() -> None:
    tiny = {"img_size": 64, "depth": 3, "embed_dim": 32, "num_heads": 2}
    ((case, steps),) = run(rounds=1, batch=2, model=tiny)
    assert case == "vit_tiny_patch16_224 64x64, batch 2"
    by_name = {step.name: step for step in steps}
    assert steps[0].name == "VQT T=1, folded" and steps[0].ratio == 1.0
    assert len(by_name) == 9 and by_name[LORA].to_lora == by_name[FULL].to_full == 1.0
    order = ["linear probe", "VQT T=1, folded", "VQT T=1, kv", LORA, FULL]
    assert [by_name[name].saved_mib for name in order] == sorted(by_name[name].saved_mib for name in order)
    for step in steps:
        assert all(form.format(step) for form in COLUMNS.values()) and step.seconds > 0


@pytest.mark.slow
def test_one_query_keeps_a_small_part_of_what_lora_and_full_fine_tuning_keep() -> None:
    ((_, steps),) = run(rounds=1)
    by_name = {step.name: step for step in steps}
    assert by_name["VQT T=1, folded"].to_lora <= 0.15 and by_name["VQT T=1, folded"].to_full <= 0.10
    assert by_name["VQT T=10, folded"].to_lora <= 0.15 and by_name["VQT T=10, folded"].to_full <= 0.15
