"""Pairs of attention and relevance, from a small model that has learned to name colours."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vistok.lvlm.micro import MicroSettings, make_model, make_processor
from vistok.lvlm.relevance import first_layer_attention, relevance
from vistok.train.conversations import Sample, model_inputs
from vistok.train.explain_compressor import Training, load_model, train
from vistok.train.relevance_pairs import cached_pairs

SETTINGS = MicroSettings(
    side=32, vision_width=32, vision_layers=1, text_width=32, text_layers=2, vision_heads=2, text_kv_heads=1
)
COLORS = ("red", "green", "blue", "yellow")
ORIGIN = {"model": "micro", "prompt": None, "answer": "{answer}"}


def samples() -> Iterator[Sample]:
    """Eight pictures of one colour each; the answers to the last two are wrong."""
    for number in range(8):
        color = COLORS[number % 4]
        told = COLORS[(number + 1) % 4] if number >= 6 else color
        yield Sample(Image.new("RGB", (32, 32), color), "what color is the thing ?", told, f"{number}.png")


@pytest.fixture(scope="module")
def taught() -> tuple[Any, Any]:
    """A model and its processor; the model answers the first six questions as they want it."""
    processor = make_processor(SETTINGS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = make_model(SETTINGS)
    inputs, labels = model_inputs(processor, list(samples())[:4])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(150):
        loss = model(**inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    return model.eval().requires_grad_(False), processor


def test_only_questions_that_are_answered_correctly_give_pairs(taught: Any, tmp_path: Path) -> None:
    model, processor = taught
    pairs = cached_pairs(tmp_path, ORIGIN, samples, lambda: taught, wanted=100, batch=3)
    assert len(pairs.attention) == len(pairs.relevance) == len(pairs.groups) == 6
    assert len(set(pairs.groups.tolist())) == 6
    for row, sample in enumerate(list(samples())[:6]):
        inputs, labels = model_inputs(processor, [sample])
        expected = first_layer_attention(model, inputs, labels).values[0]
        torch.testing.assert_close(pairs.attention[row], expected)
        end = processor.tokenizer.eos_token_id
        target = relevance(model, inputs, labels, skip=(end,)).visual.values[0]
        torch.testing.assert_close(pairs.relevance[row], target, rtol=1e-3, atol=1e-6)
        assert target.sum() > 0


def test_what_was_asked_is_not_asked_again(taught: Any, tmp_path: Path) -> None:
    whole = cached_pairs(tmp_path / "whole", ORIGIN, samples, lambda: taught, wanted=100, batch=2, per_file=3)
    asked: list[int] = []

    def interrupted() -> Iterator[Sample]:
        for number, sample in enumerate(samples()):
            if number == 5:
                raise KeyboardInterrupt
            yield sample

    with pytest.raises(KeyboardInterrupt):
        cached_pairs(tmp_path / "halves", ORIGIN, interrupted, lambda: taught, wanted=100, batch=2, per_file=3)
    assert sorted(path.name for path in (tmp_path / "halves").iterdir()) == ["00000.safetensors", "pairs.json"]
    before = (tmp_path / "halves" / "00000.safetensors").stat().st_mtime_ns
    found = cached_pairs(tmp_path / "halves", ORIGIN, samples, lambda: taught, wanted=100, batch=2, per_file=3)
    assert (tmp_path / "halves" / "00000.safetensors").stat().st_mtime_ns == before
    for mine, theirs in zip(found.relevance, whole.relevance, strict=True):
        assert torch.equal(mine, theirs)

    def load() -> Any:
        asked.append(1)
        return taught

    cached_pairs(tmp_path / "halves", ORIGIN, samples, load, wanted=100, batch=2, per_file=3)
    assert not asked


def test_no_more_than_wanted_are_made(taught: Any, tmp_path: Path) -> None:
    pairs = cached_pairs(tmp_path, ORIGIN, samples, lambda: taught, wanted=4, batch=2, per_file=3)
    assert len(pairs.attention) == 4 and len(list(tmp_path.glob("*.safetensors"))) == 2


def test_pairs_of_another_origin_and_a_model_that_knows_nothing_are_named(taught: Any, tmp_path: Path) -> None:
    wrong = [sample._replace(answer="square") for sample in samples()]
    with pytest.raises(ValueError, match="some of the 8 questions word for word, it answered none"):
        cached_pairs(tmp_path / "wrong", ORIGIN, lambda: wrong, lambda: taught, wanted=9, batch=4)
    cached_pairs(tmp_path / "right", ORIGIN, samples, lambda: taught, wanted=9, batch=8)
    with pytest.raises(ValueError, match="choose another `out`"):
        cached_pairs(tmp_path / "right", ORIGIN | {"model": "other"}, samples, lambda: taught, wanted=9, batch=8)


def test_a_run_from_a_folder_and_a_file_ends_with_a_compressor(taught: Any, tmp_path: Path) -> None:
    for part in taught:
        part.save_pretrained(tmp_path / "lvlm")
    lines = []
    for sample in samples():
        assert isinstance(sample.image, Image.Image)
        sample.image.save(tmp_path / sample.group)
        turns = [{"from": "human", "value": f"<image>\n{sample.question}"}, {"from": "gpt", "value": sample.answer}]
        lines.append(json.dumps({"image": sample.group, "conversations": turns}) + "\n")
    (tmp_path / "data.jsonl").write_text("".join(lines))
    training = Training(
        out=str(tmp_path / "run"), model=str(tmp_path / "lvlm"), data=str(tmp_path / "data.jsonl"), epochs=2, batch=4,
        validation=0.0, settings={"channels": [8]},
    )  # fmt: skip
    metrics = train(training)
    assert metrics["epoch"] == 2 and (tmp_path / "run" / "model" / "model.safetensors").is_file()
    with pytest.raises(ValueError, match="expected data, a JSON or JSON Lines file"):
        train(Training(out=str(tmp_path / "run"), model="none"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_model(str(tmp_path / "nowhere"), "cpu", "float32")
