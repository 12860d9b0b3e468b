"""The deltas that ship: small, with a card, depth tokens near the truth, and conclusions drawn from them."""

from pathlib import Path

import pytest
import torch

from vistok.lvlm.load import load_lvlm
from vistok.lvlm.new_rows import matrices
from vistok.lvlm.perception_model import load_perception
from vistok.lvlm.point_questions import PointTexts, point_questions
from vistok.lvlm.replacement_test import OWN, replacement_test
from vistok.weights import locate

FOLDER = Path(locate("embedded:aurora_micro"))


def test_the_folder_is_small_and_has_a_card_with_licence_and_numbers():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 1.5e6
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert all(part in card for part in ("## Data", "## Recipe", "## Numbers", "| oracle |", "| program |"))


def test_it_is_the_micro_lvlm_with_rows_for_depth_tokens():
    host, (base, _) = load_perception(), load_lvlm("micro_lvlm")
    assert len(host.attachment.maps["depth"]) == 16 and host.settings["chain"]
    for name, matrix in matrices(base).items():
        assert torch.equal(matrices(host.model)[name][: len(matrix)], matrix)


@pytest.mark.slow
def test_its_tokens_say_which_thing_is_nearest_and_its_conclusion_follows_them():
    host = load_perception()
    questions = point_questions(PointTexts(host.attachment.families[0]), 60)
    written = replacement_test(host, questions, ("oracle", "random"))
    right = {
        mode: sum(one.answer == question.answer for one, question in zip(said, questions, strict=True)) / len(questions)
        for mode, said in written.items()
    }
    read = [
        question.read(said.codes) == question.answer for said, question in zip(written[OWN], questions, strict=True)
    ]
    assert sum(read) / len(read) >= 0.65, "by guessing 45 %"
    assert right[OWN] >= 0.55 and right["oracle"] >= right["random"] + 0.2
