"""Comparing VQT with a linear probe: resumes, nothing of the backbone moves, results say what models on disk say."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vistok.config import read_yaml
from vistok.readouts.vqt import VQT
from vistok.readouts.vqt_classifier import VQTClassifier
from vistok.train.labelled_images import labelled_images
from vistok.train.masked_autoencoder import Training as Pretraining
from vistok.train.masked_autoencoder import make_backbone, write_backbone
from vistok.train.standardized_head import standardized
from vistok.train.vqt import Comparison, Training, train
from vistok.train.vqt_results import read_results

MODEL = {"patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2, "global_pool": "avg", "fc_norm": False}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("backbone") / "model"
    config = Pretraining(out="", model=MODEL)
    write_backbone(make_backbone(config), config, folder)
    return folder


@pytest.fixture
def training(backbone: Path, tmp_path: Path) -> Training:
    return Training(
        out=str(tmp_path / "run"), checkpoint=str(backbone), tasks=["color", "size"], tokens=[2],
        train_images=12, validation_images=4, test_images=6, learning_rates=[0.1], weight_decays=[0.001],
        batch=6, epochs=2, warm_epochs=1, seeds=[1, 2], keep=0.5, standardize=True,
    )  # fmt: skip


def test_every_task_and_readout_has_a_result_and_a_second_run_keeps_them(training: Training) -> None:
    steps: list[int] = []
    last = train(training, lambda step, values: steps.append(step))
    found = {(result.facts.task, result.facts.readout): result for result in read_results(training.out)}
    assert set(found) == {(task, name) for task in training.tasks for name in ("linear", "vqt_t2")}
    assert steps == list(range(1, training.steps + 1)) and 0 <= last["accuracy"] <= 1
    probe, vqt = found["color", "linear"], found["color", "vqt_t2"]
    assert probe.right.shape == vqt.right.shape == (2, 6) and probe.right.dtype == torch.bool
    assert (probe.facts.features, vqt.facts.features, vqt.facts.kept_features) == (16, 16 + 2 * 2 * 16, 40)
    assert probe.kept_right is None and probe.facts.solved is not None
    assert vqt.refit_right is not None and vqt.kept_right is not None and vqt.facts.solved is None
    mean = (found["color", "vqt_t2"].accuracy + found["size", "vqt_t2"].accuracy) / 2
    assert last["accuracy"] == pytest.approx(mean)
    assert train(training) == {"step": 0, "accuracy": last["accuracy"]}
    with pytest.raises(ValueError, match="run of other settings: epochs 2 there and 5 now; name another folder"):
        train(replace(training, epochs=5))
    (Path(training.out) / "results" / "size.vqt_t2.safetensors").unlink()
    steps.clear()
    train(training, lambda step, values: steps.append(step))
    again = {(result.facts.task, result.facts.readout): result for result in read_results(training.out)}
    assert steps == [1] and torch.equal(again["size", "vqt_t2"].right, found["size", "vqt_t2"].right)


def test_the_models_on_disk_answer_as_the_results_say(training: Training) -> None:
    config = replace(training, tasks=["color"], tokens=[2])
    comparison = Comparison(config)
    before = {name: value.clone() for name, value in comparison.backbone.net.state_dict().items()}
    *_, result = comparison.results()
    net = comparison.backbone.net
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(value.grad is None for value in net.parameters())
    test = labelled_images("portrait", "test", config.test_images, 64)
    for name, right in (("color.vqt_t2", result.right), ("color.vqt_t2_kept", result.kept_right)):
        saved = load_file(Path(config.out) / "model" / f"{name}.safetensors")
        assert not [key for key in saved if key.startswith("vit.")]
        model = VQTClassifier(VQT(net, 2), 6)
        model.load_state_dict(saved)
        with torch.no_grad():
            answers = model.eval()((test.images - 0.5) / 0.25).argmax(1)
        assert right is not None and torch.equal(answers == test.labels["color"], right[0]), name


def test_the_recipe_is_chosen_by_images_that_no_fit_saw(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = Comparison(replace(training, learning_rates=[0.02, 0.3, 0.1]))
    images = comparison._images("portrait")
    labels = images.seen_labels["size"]
    seen: list[tuple[float, int]] = []
    answers = {0.02: 2, 0.1: 3, 0.3: 3}  # right ones of the four held out
    rate = 0.0

    def fitted(model: Any, images: Any, labels: torch.Tensor, recipe: Any, seed: int) -> float:
        nonlocal rate
        rate = recipe.learning_rate
        seen.append((rate, len(labels)))
        return 1.0 if rate != 0.02 else float("nan")

    def predicted(model: Any, images: Any, rows: torch.Tensor) -> torch.Tensor:
        assert rows.tolist() == [8, 9, 10, 11]
        wrong = torch.arange(4) >= answers[rate]
        return torch.where(wrong, 1 - labels[rows], labels[rows])

    monkeypatch.setattr(comparison, "_fit", fitted)
    monkeypatch.setattr("vistok.train.vqt._predicted", predicted)
    recipe, accuracy = comparison.choose(1, images.seen, labels, 2)
    assert seen == [(0.02, 8), (0.1, 8), (0.3, 8)]
    assert (recipe.learning_rate, accuracy) == (0.1, 0.75)  # of equal ones the smaller rate
    with pytest.raises(ValueError, match="no learning rate of"):
        bad = Comparison(replace(training, learning_rates=[0.02]))
        monkeypatch.setattr(bad, "_fit", fitted)
        bad.choose(1, images.seen, labels, 2)


def test_features_are_standardised_by_the_images_that_are_fitted_to(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = Comparison(training)
    images = comparison._images("portrait")
    rows: list[int] = []

    def counted(head: Any, features: torch.Tensor) -> Any:
        rows.append(len(features))
        return standardized(head, features)

    monkeypatch.setattr("vistok.train.vqt.standardized", counted)
    comparison.choose(1, images.seen, images.seen_labels["size"], 2)
    assert rows == [8]  # of 12, four of which are held out


def test_the_probe_may_have_a_search_of_its_own_and_all_queries_that_of_a_few(training: Training) -> None:
    config = replace(
        training,
        tasks=["size"],
        tokens=[1, 2],
        probe_learning_rates=[0.3],
        probe_weight_decays=[0.0],
        search_tokens=1,
        seeds=[1],
    )
    comparison = Comparison(config)
    assert [(recipe.learning_rate, recipe.weight_decay) for recipe in comparison.probe_recipes] == [(0.3, 0.0)]
    searched: list[int] = []
    choose = comparison.choose

    def counted(tokens: int, *args: Any) -> Any:
        searched.append(tokens)
        return choose(tokens, *args)

    comparison.choose = counted  # type: ignore[method-assign]
    found = {result.facts.readout: result.facts for result in comparison.results()}
    assert searched == [0, 1] and found["linear"].learning_rate == 0.3
    assert found["vqt_t1"].learning_rate == found["vqt_t2"].learning_rate != 0.3


def test_queries_learn_beside_the_head(training: Training) -> None:
    comparison = Comparison(training)
    images = comparison._images("portrait")
    model = comparison.make(2, 2, 0)
    before = model.vqt.queries.detach().clone()
    comparison._fit(model, images.seen, images.seen_labels["size"], comparison.recipes[0], 0)
    moved = (model.vqt.queries.detach() - before).abs().amax(-1)
    assert moved.shape == (2, 2) and (moved > 0).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": ["colour"]}, "task: expected one of color, .*, got 'colour'"),
        ({"tasks": []}, "expected tasks, seeds"),
        ({"tokens": [0]}, "numbers of queries >= 1"),
        ({"search_tokens": 0}, "search_tokens >= 1"),
        ({"validation_images": 12}, "validation_images in 1..11, got 12"),
        ({"learning_rates": []}, "expected learning_rates"),
        ({"keep": 0.0}, r"keep in \(0, 1\]"),
        ({"solver": "lion"}, "solver adam or sgd"),
        ({"head_epochs": 0}, "head_epochs > warm_epochs, got 0 and"),
    ],
)
def test_what_cannot_be_is_refused_by_name(training: Training, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Comparison(replace(training, **changes))


def test_fashion_mnist_needs_its_folder_before_anything_is_fitted(training: Training) -> None:
    with pytest.raises(ValueError, match="vistok data fashion_mnist DIR"):
        Comparison(replace(training, tasks=["color", "fashion_mnist"]))


def test_the_recipe_names_settings_that_there_are() -> None:
    settings = {name: value for name, value in read_yaml("train", "vqt").items() if name not in ("summary", "method")}
    assert Training(out="", **settings).backbone == "vit_nano"


@pytest.mark.slow
def test_on_the_shipped_backbone_queries_see_more_than_a_probe_and_a_part_of_the_features_suffices(
    tmp_path: Path,
) -> None:
    recipe = {name: value for name, value in read_yaml("train", "vqt").items() if name not in ("summary", "method")}
    changes = {"tasks": ["color"], "tokens": [1], "learning_rates": [0.06], "test_images": 1000, "seeds": [42]}
    train(Training(out=str(tmp_path), **{**recipe, **changes}))
    probe, vqt = read_results(tmp_path)
    assert vqt.refit_right is not None and vqt.kept_right is not None
    assert vqt.facts.kept_features == int(0.3 * vqt.facts.features)
    assert vqt.accuracy > probe.accuracy + 0.02
    refitted, kept = (float(right.double().mean()) for right in (vqt.refit_right, vqt.kept_right))
    assert refitted > vqt.accuracy and kept > refitted - 0.01
