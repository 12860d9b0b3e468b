"""The deltas that ship: small, with a card, and depth tokens as near the truth as it says."""

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
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 0.7e6
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert all(part in card for part in ("## Data", "## Recipe", "## Numbers", "| oracle |", "| program |"))


def test_it_is_the_micro_lvlm_with_rows_for_depth_tokens():
    host, (base, _) = load_perception(), load_lvlm("micro_lvlm")
    assert len(host.attachment.maps["depth"]) == 16 and host.settings["chain"]
    for name, matrix in matrices(base).items():
        assert torch.equal(matrices(host.model)[name][: len(matrix)], matrix)


@pytest.mark.slow
def test_its_depth_tokens_say_which_thing_is_nearest():
    host = load_perception()
    questions = point_questions(PointTexts(host.attachment.families[0]), 60)
    written = replacement_test(host, questions, ())[OWN]
    found = [question.read(said.codes) == question.answer for said, question in zip(written, questions, strict=True)]
    assert sum(found) / len(found) >= 0.65, "by guessing 45 %"
