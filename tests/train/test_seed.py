"""Training of SEED on scenes: each stage moves what it should, runs resume to the bit, what ships retrieves."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import vistok
from vistok.data.scenes.splits import seeds_of
from vistok.metrics.scene_retrieval import SceneRetrieval, scene_retrieval
from vistok.train.scene_features import scene_features
from vistok.train.seed import STAGES, Trainer, Training, image_embedding, train

TINY: dict[str, Any] = {
    **vistok.info("tokenizer", "seed_nano").tiny,
    "quantizer": {"method": "vq", "metric": "cosine", "dim": 4, "codebook_size": 16},
}


def recipe(folder: Path) -> Training:
    return Training(
        out=str(folder / "run"), settings=TINY, scenes=12, contrastive_steps=3, steps=6, batch=4, codes_batch=6,
        text_groups=2, warmup=1, validation=4, validate_every=4, save_every=1, log_every=1,
    )  # fmt: skip


@pytest.fixture
def training(tmp_path: Path) -> Training:
    return recipe(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A run that nothing interrupted."""
    trainer = Trainer(recipe(tmp_path_factory.mktemp("whole")))
    trainer.run()
    return trainer


def state_of(model: Any) -> dict[str, torch.Tensor]:
    # The tower's weights are in no state_dict: they are read from their own file.
    whole = {**model.state_dict(), **{f"tower.{name}": value for name, value in model.visual_encoder.named_buffers()}}
    return {name: value.clone() for name, value in whole.items()}


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_of_a_stage_moves_what_the_stage_trains_and_nothing_else(training: Training, stage: str) -> None:
    trainer = Trainer(replace(training, contrastive_steps=1 if stage == "contrastive" else 0, validation=1))
    trainer.prepare()
    assert trainer.stage == stage
    before = state_of(trainer.model)
    values = trainer.train_step()
    moved = {name for name, value in state_of(trainer.model).items() if not torch.equal(value, before[name])}
    trained = {name for name in before if name.partition(".")[0] in STAGES[stage]}
    assert moved <= trained
    # A softmax does not see what is added to all keys alike, and a batch may change no count of the codebook's.
    parameters = {name for name, _ in trainer.model.named_parameters() if not name.endswith(".key.bias")}
    assert trained & parameters <= moved
    assert any(name.startswith("quantizer.") for name in moved) == (stage == "codebook")
    assert set(values) >= ({"contrastive"} if stage == "contrastive" else {"quantizer", "reconstruction", "image"})


def test_the_stages_name_every_parameter_once_and_the_tower_in_none(training: Training) -> None:
    model = Trainer(training).model
    parts = Counter(part for stage in STAGES.values() for part in stage)
    assert set(parts.values()) == {1}
    assert {name.partition(".")[0] for name, _ in model.named_parameters()} <= set(parts)
    assert not any(name.startswith("visual_encoder") for name, _ in model.named_parameters())


@pytest.mark.parametrize("stopped", [2, 3, 5])
def test_a_run_that_was_interrupted_in_either_stage_ends_with_the_same_bits(
    training: Training, whole: Trainer, stopped: int
) -> None:
    def stop(step: int, values: dict[str, float]) -> None:
        if step == stopped:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(training).run(stop)
    resumed = Trainer(training)
    metrics = resumed.run()
    assert resumed.step == 6 and 0 <= metrics["recall_codes"] <= 1
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[name]), name
    for name, value in resumed.optimizer.state_dict()["state"].items():
        for key, tensor in value.items():
            assert torch.equal(tensor, whole.optimizer.state_dict()["state"][name][key]), (name, key)
    rows = [(Path(out) / "metrics.jsonl").read_text().count("\n") for out in (training.out, whole.out)]
    assert rows == [6, 6]


def test_every_scene_comes_once_before_one_comes_twice(training: Training) -> None:
    trainer = Trainer(training)
    seen = []
    for trainer.step in range(3):
        seen += trainer.chosen()
    assert sorted(seen) == list(range(12))
    rates = []
    for trainer.step in (0, 2, 3, 5):
        rates.append(trainer.rate())
    assert rates[0] == training.rate and rates[2] == training.codes_rate and rates[1] > rates[3] > 0


def test_the_picture_as_a_whole_is_the_class_token_normalised(training: Training) -> None:
    features = scene_features(seeds_of("train")[:3], 96, Trainer(training).model.visual_encoder)
    found = image_embedding(features)
    torch.testing.assert_close(found.mean(1), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.std(1, correction=0), torch.ones(3), rtol=0, atol=1e-3)
    picture = features[:, 0] - features[:, 0].mean(1, keepdim=True)
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(found, picture), torch.ones(3))


def test_what_does_not_fit_is_named(training: Training) -> None:
    with pytest.raises(ValueError, match="expected 0 <= contrastive_steps <= steps=6"):
        Trainer(replace(training, contrastive_steps=7))
    with pytest.raises(ValueError, match="expected batches of at most scenes=12"):
        Trainer(replace(training, codes_batch=13))
    with pytest.raises(ValueError, match="expected embedding_dim 128, the width of the vision tower, got 64"):
        Trainer(replace(training, settings={**TINY, "embedding_dim": 64}))
    with pytest.raises(ValueError, match="expected a preset of method seed_text.*got 'vq_nano'"):
        Trainer(replace(training, tokenizer="vq_nano", settings={}))


@torch.no_grad()
def test_a_trained_model_is_a_checkpoint_of_its_name_whose_codes_stay(training: Training) -> None:
    training = replace(training, contrastive_steps=1, steps=2)
    with torch.enable_grad():
        train(training)
    model: Any = vistok.tokenizer("seed_nano", checkpoint=Path(training.out) / "model")
    assert model.embed_texts(["a small red ring ."]).isfinite().all()
    trained = Trainer(training)
    trained.resume()
    codes = trained.model.quantizer.codebook
    torch.testing.assert_close(model.quantizer.codebook, codes, rtol=0, atol=1e-3)
    latents = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    whole = trained.exported()
    assert torch.equal(whole.quantizer(latents).indices, trained.model.eval().quantizer(latents).indices)
    before = model.quantizer.codebook
    model.train().encode(torch.rand(2, 3, 96, 96))
    assert torch.equal(model.quantizer.codebook, before)


def test_a_run_may_begin_from_a_checkpoint(training: Training, tmp_path: Path) -> None:
    torch.manual_seed(5)
    model: Any = vistok.tokenizer("seed_nano", **TINY)
    model.save_pretrained(tmp_path / "model")
    again = Trainer(replace(training, start=str(tmp_path / "model")))
    assert torch.equal(again.model.query_tokens, model.query_tokens)


@pytest.fixture(scope="module", params=["test", "heldout"])
def shipped(request: pytest.FixtureRequest) -> SceneRetrieval:
    model: Any = vistok.tokenizer("seed_nano", pretrained=True)
    return scene_retrieval(model.eval(), seeds_of(request.param)[:500])


@pytest.mark.slow
def test_the_model_that_ships_finds_the_captions_of_scenes_it_never_saw(shipped: SceneRetrieval) -> None:
    assert shipped.embeddings.image_to_text[1] >= 0.25
    assert shipped.codes.image_to_text[1] >= 0.8 * shipped.embeddings.image_to_text[1]
    assert shipped.health.tokens == 500 * 32 and shipped.health.usage() > 0.25


@pytest.mark.slow
@torch.no_grad()
def test_in_the_model_that_ships_no_token_depends_on_later_queries() -> None:
    model: Any = vistok.tokenizer("seed_nano", pretrained=True)
    model.eval()
    features = model.normalised(scene_features(seeds_of("test")[:8], 96, model.visual_encoder))
    before = model.causal_queries(features)
    ids = model.quantizer(model.encode_task_layer(before)).indices
    for query in (1, 20, 31):
        model.query_tokens[:, query] += 1.0
        after = model.causal_queries(features)
        assert torch.equal(after[:, :query], before[:, :query]) and not torch.equal(after[:, query], before[:, query])
        assert torch.equal(model.quantizer(model.encode_task_layer(after)).indices[:, :query], ids[:, :query])
        model.query_tokens[:, query] -= 1.0
        before = model.causal_queries(features)
