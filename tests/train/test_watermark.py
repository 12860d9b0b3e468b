"""The net that chooses tokens: labels are what became of them, it learns which ones last, its file comes back."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from vistok.codecs.watermark import Watermark
from vistok.ops.nearest_code import nearest_code
from vistok.train.watermark import Trainer, Training, load_scorer, train


@pytest.fixture
def training(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(3):
        coarse = draw.integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return Training(
        out=str(tmp_path / "run"), photos=[str(folder)], width=4, crop=64, scales=[64], batch=2, steps=2, checks=4
    )


@pytest.mark.slow
def test_a_run_leaves_a_net_that_scores_every_token(training, tmp_path):
    found = train(training)
    assert 0 <= found["chosen"] <= 1 and 0.5 < found["random"] <= 1
    net = load_scorer(tmp_path / "run" / "model")
    made = Trainer(training)
    made.net.load_state_dict(net.state_dict())
    codes = made.codebook[torch.arange(24).reshape(1, 4, 6)]
    assert torch.equal(net(codes), made.net.eval()(codes)) and net(codes).shape == (1, 24)


def test_labels_are_whether_marked_tokens_keep_their_class(training):
    trainer = Trainer(training)
    images = trainer.crops.batch(0, 4)
    before, after, marked, kept = trainer.marked(images, 7)
    assert before.shape == after.shape == (4, 8, 8, 6) and marked.shape == kept.shape == (4, 64)
    assert 0 < int(marked.sum()) < 128 and not bool(kept[marked].all())
    ids = nearest_code(after.flatten(0, 2), trainer.codebook).reshape(4, 64)
    right = ids % 2 == Watermark(trainer.codebook, "step 7").wanted(64)
    assert torch.equal(kept[marked], right[marked]) and float(kept[~marked].float().mean()) > 0.5


def test_pictures_to_measure_on_are_never_trained_on_however_few_there_are(training):
    files = Trainer(training).files
    assert len(files["train"]) == 2 and len(files["test"]) == 1 and not {*files["train"]} & {*files["test"]}
    one = f"{training.photos[0]}/0.png"
    for photos in ([], [one]):
        with pytest.raises(ValueError, match=f"two pictures or more.* got {len(photos)} pictures"):
            Trainer(replace(training, photos=photos))


def test_a_file_that_is_no_net_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="vistok train watermark"):
        load_scorer(tmp_path)
    from safetensors.torch import save_file

    save_file({"other": torch.zeros(1)}, tmp_path / "survival.safetensors", {"dim": "6", "width": "4"})
    with pytest.raises(ValueError, match="expected the net that"):
        load_scorer(tmp_path)
