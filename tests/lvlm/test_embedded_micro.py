"""The language model that ships: small, and as its model card says on questions it never saw."""

import json
from pathlib import Path

import pytest
import torch

from vistok.data.scenes import KINDS
from vistok.lvlm.evaluation import BLIND, Ablation, best_constants, evaluate_ablations
from vistok.lvlm.load import load_lvlm
from vistok.lvlm.scene_questions import scene_foreground, scene_picture, scene_questions, scene_side
from vistok.weights import locate

FOLDER = Path(locate("embedded:micro_lvlm"))


def test_the_folder_is_small_and_has_a_card_with_licence_and_numbers() -> None:
    sizes = [path.stat().st_size for path in FOLDER.iterdir()]
    assert sum(sizes) <= 16e6
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert all(part in card for part in ("## Data", "## Recipe", "| all kinds |", *(f"| {kind} |" for kind in KINDS)))


def test_it_has_the_shape_that_pruners_need() -> None:
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    assert config["text_config"]["num_hidden_layers"] >= 8 and config["vision_config"]["num_hidden_layers"] >= 4
    assert config["text_config"]["num_key_value_heads"] < config["text_config"]["num_attention_heads"]
    assert config["image_seq_length"] >= 144


@pytest.fixture(scope="module")
def ablation() -> Ablation:
    model, processor = load_lvlm("micro_lvlm")
    side = scene_side(processor)
    questions = scene_questions("test", 30 * len(KINDS))
    constants = best_constants(scene_questions("validation", 30 * len(KINDS)))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        return evaluate_ablations(
            *(model, processor, questions, scene_picture(side), scene_foreground(side)),
            constants=constants, budgets=(0.5, 0.25, 0.1), max_new_tokens=1,
        )  # fmt: skip
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_it_answers_what_cannot_be_answered_blind(ablation: Ablation) -> None:
    assert ablation.overall["all"].accuracy >= 0.88
    for kind, found in ablation.kinds["all"].items():
        assert found.accuracy >= ablation.kinds[BLIND][kind].accuracy + 0.2, kind


@pytest.mark.slow
def test_with_the_tokens_of_another_picture_it_is_blind(ablation: Ablation) -> None:
    assert ablation.overall["other picture"].accuracy <= ablation.overall[BLIND].accuracy + 0.06


@pytest.mark.slow
def test_fewer_random_tokens_mean_fewer_answers(ablation: Ablation) -> None:
    found = [ablation.overall[name].accuracy for name in ("all", "random 50%", "random 25%", "random 10%")]
    assert found == sorted(found, reverse=True)


@pytest.mark.slow
def test_what_matters_is_in_the_foreground_and_norms_do_not_give_it_away(ablation: Ablation) -> None:
    assert ablation.differences["oracle 25%"].difference >= 0.05
    for rule in ("high norm 25%", "low norm 25%"):
        assert abs(ablation.differences[rule].difference) <= 0.08
