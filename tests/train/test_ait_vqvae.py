"""The training of the depth codec: what it learns from, that it learns, and that a stopped run goes on to the bit."""

from pathlib import Path
from typing import Any

import pytest
import torch

import vistok
from vistok.train.ait_vqvae import Trainer, Training, scene_maps, train
from vistok.train.step_loop import run_steps

SMALL: dict[str, Any] = {
    "settings": vistok.info("codec", "depth_nano").tiny,
    "scenes": 2,
    "validation": 0,
    "steps": 6,
    "save_every": 3,
    "log_every": 3,
    "warmup": 1,
}


def test_batches_are_the_depth_of_scenes_and_of_their_mirrors():
    codec: Any = vistok.codec("depth_nano")
    maps = scene_maps(codec, 0, 2)
    assert maps.shape == (4, 1, 80, 80) and torch.equal(maps[:2], maps[2:].flip(-1))
    assert torch.equal(maps.amin((1, 2, 3)), -torch.ones(4)) and torch.equal(maps.amax((1, 2, 3)), torch.ones(4))
    assert torch.equal(scene_maps(codec, 1, 1)[0], scene_maps(codec, 0, 2)[1])


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: Path):
    whole = Trainer(Training(str(tmp_path / "whole"), **SMALL))
    run_steps(whole, measure=whole.measured)
    first = Trainer(Training(str(tmp_path / "parts"), **SMALL))

    def stop(step: int, values: dict[str, float]) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_steps(first, stop, measure=first.measured)
    second = Trainer(Training(str(tmp_path / "parts"), **SMALL))
    run_steps(second, measure=second.measured)
    assert second.step == 6
    for name, value in whole.codec.state_dict().items():
        assert torch.equal(value, second.codec.state_dict()[name]), name
    assert torch.equal(whole.codec.network.codes.idle, second.codec.network.codes.idle)


def test_a_run_leaves_a_codec_that_checkpoint_takes(tmp_path: Path):
    metrics = train(Training(str(tmp_path), **{**SMALL, "steps": 3, "validation": 3}))
    assert {"loss", "abs_rel", "delta_1", "codes_used", "perplexity"} <= metrics.keys()
    codec: Any = vistok.codec("depth_nano", checkpoint=tmp_path / "model")
    assert codec.num_tokens == 9
    again = Trainer(Training(str(tmp_path / "next"), **SMALL, start=str(tmp_path / "model")))
    assert bool(again.codec.network.codes.started), "loaded codes must not be started anew"


@pytest.mark.slow
def test_it_learns(tmp_path: Path):
    options = {**SMALL, "steps": 80, "scenes": 4, "validation": 16, "learning_rate": 3e-3, "log_every": 80}
    network = {"hidden": 8, "revive_after": 20}
    metrics = train(Training(str(tmp_path), **{**options, "settings": {"network": network}}))
    assert metrics["reconstruction"] < 0.35, "it begins at 0.9"
    assert metrics["abs_rel"] < 0.25 and metrics["codes_used"] > 0.2, "it begins at 0.34 and with one code"
