"""The stage table of ETT as data: exactly the listed parts train, at the listed rates, and bad rows are refused."""

from typing import Any

import pytest
from torch import nn

from vistok.config import config_names, read_yaml
from vistok.train.ett import Training
from vistok.train.ett_stages import Stage, chosen_stages, read_stages

ROW: dict[str, Any] = {
    "name": "semantic", "trained": ["tokenizer", "projector"], "frozen": ["language"],
    "losses": {"caption": 1.0, "vq": 0.25}, "learning_rate": 1e-3, "steps": 100, "batch": 4,
}  # fmt: skip
TABLES = [name for name in config_names("train") if read_yaml("train", name).get("method") == "ett"]


def parts() -> dict[str, nn.Module]:
    return {name: nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for name in ("tokenizer", "projector", "language")}


def test_exactly_the_listed_parts_train_and_the_others_stay_in_evaluation_mode() -> None:
    found = parts()
    for trained in (["language"], ["tokenizer", "projector"], ["projector"]):
        frozen = [name for name in found if name not in trained]
        Stage(**{**ROW, "trained": trained, "frozen": frozen}).apply(found)
        for name, part in found.items():
            assert all(parameter.requires_grad == (name in trained) for parameter in part.parameters())
            assert all(module.training == (name in trained) for module in part.modules())


@pytest.mark.parametrize("name", TABLES)
def test_the_shipped_tables_hold_the_papers_stages(name: str) -> None:
    recipe = {key: value for key, value in read_yaml("train", name).items() if key not in ("summary", "method")}
    stages = read_stages(Training(out="", **recipe).stages)
    assert chosen_stages(stages, recipe["run"])
    for stage in stages.values():
        listed = [*stage.trained, *stage.frozen]
        assert len(set(listed)) == len(listed) and {"tokenizer", "projector", "language"} <= set(listed)
    by_name = {name: (set(stage.trained), dict(stage.losses)) for name, stage in stages.items()}
    assert by_name["tokenizer"] == ({"tokenizer"}, {"vq": 1.0})
    assert by_name["alignment"] == ({"projector"}, {"caption": 1.0})
    assert by_name["semantic"] == ({"tokenizer", "projector", "language"}, {"caption": 1.0, "vq": 0.25})
    assert by_name["chat"] == ({"projector", "language"}, {"caption": 1.0})
    assert by_name["generation"] == ({"projector", "language", "head"}, {"visual": 1.0})


def test_the_three_arms_of_the_small_recipe_differ_in_one_thing_each() -> None:
    stages = read_stages(read_yaml("train", "ett_nano")["stages"])
    tuned, caption, untuned = (stages[name] for name in ("semantic", "caption_only", "untuned"))
    assert (tuned.steps, tuned.batch, tuned.stream) == (caption.steps, caption.batch, caption.stream)
    assert (tuned.steps, tuned.batch, tuned.stream) == (untuned.steps, untuned.batch, untuned.stream)
    assert tuned.learning_rate == caption.learning_rate and tuned.trained == caption.trained
    assert set(untuned.trained) == {"projector", "language"} and untuned.losses == caption.losses
    for part in untuned.trained:
        assert [tuned.rate(part, step) for step in (0, 50, 170)] == [untuned.rate(part, step) for step in (0, 50, 170)]


def test_rates_rise_then_fall_to_nothing_or_stay() -> None:
    falling = Stage(**{**ROW, "learning_rate": {"tokenizer": 1.0, "projector": 2.0}, "warmup": 0.1})
    rates = [falling.rate("tokenizer", step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True) and 0 < rates[-1] < 1e-3
    assert falling.rate("projector", 40) == pytest.approx(2 * rates[40])
    fixed = Stage(**{**ROW, "warmup": 0.0, "decay": "fixed"})
    assert {fixed.rate("tokenizer", step) for step in (0, 50, 99)} == {1e-3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frozen": ["language", "tokenizer"]}, "none of them frozen too, got \\['tokenizer'\\]"),
        ({"trained": [], "frozen": []}, "expected some trained parts"),
        ({"losses": {"captoin": 1.0}}, "losses among caption, vq, visual"),
        ({"losses": {}}, "losses among"),
        ({"steps": 0}, "steps and batch >= 1"),
        ({"decay": "linear"}, "decay in"),
        ({"stream": 10}, "stream in 0..9"),
        ({"learning_rate": {"tokenizer": 1.0}}, "one for each of \\['projector', 'tokenizer'\\]"),
    ],
)
def test_a_bad_row_is_refused_and_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"'semantic'.*{message}"):
        read_stages([{**ROW, **change}])


def test_rows_that_forget_or_invent_something_are_refused() -> None:
    with pytest.raises(ValueError, match="expected also batch"):
        read_stages([{key: value for key, value in ROW.items() if key != "batch"}])
    with pytest.raises(TypeError, match="learning_rate"):
        read_stages([{**ROW, "learning_rates": 1.0}])
    with pytest.raises(ValueError, match="'semantic' twice"):
        read_stages([ROW, ROW])
    with pytest.raises(ValueError, match="got none that it lacks and language unnamed"):
        Stage(**{**ROW, "frozen": []}).apply(parts())
    with pytest.raises(ValueError, match="got head that it lacks and none unnamed"):
        Stage(**{**ROW, "trained": ["tokenizer", "projector", "head"]}).apply(parts())
    Stage(**{**ROW, "frozen": ["language", "head"]}).apply(parts())
    stages = read_stages([ROW])
    assert chosen_stages(stages, []) == chosen_stages(stages, ["semantic"])
    with pytest.raises(ValueError, match="among semantic, got \\['chat'\\]"):
        chosen_stages(stages, ["chat"])
