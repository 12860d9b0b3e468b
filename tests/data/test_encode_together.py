from dataclasses import replace
from pathlib import Path

import pytest

import vistok.data.encode_shard
import vistok.data.load
from vistok.data.encode import encode_folder
from vistok.data.encode_shard import Schedule
from vistok.data.encode_together import run_plans
from vistok.data.inputs.open import open_input
from vistok.data.plan import EncodeSettings, make_plan
from vistok.data.store import TokenStore
from vistok.layers.preprocess import Preprocess

FOUR = EncodeSettings(threads=1, shard_samples=4)
ONE_THREAD = Schedule(decode_threads=1)


def files_of(root: Path) -> dict[str, bytes]:
    """Everything in a store that must be the same bytes in every run."""
    found = [path for folder in ("shards", "errors") for path in (root / folder).glob("*")]
    return {str(path.relative_to(root)): path.read_bytes() for path in [*found, root / "dataset.json"]}


def together(tokenizers, photos, root: Path, schedule: Schedule = ONE_THREAD, settings: EncodeSettings = FOUR):
    pictures = open_input(photos)
    plans = [make_plan(tokenizer, pictures, settings) for tokenizer in tokenizers]
    heard: list[int] = []
    outs = [root / str(number) for number in range(len(plans))]
    return run_plans(plans, tokenizers, outs, schedule, on_images=heard.append), sum(heard)


@pytest.fixture
def tokenizers(discrete, continuous, other_weights):
    other_weights.preprocess = Preprocess(resize=24, crop=24)
    return [discrete, continuous, other_weights]


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The names of the pictures that are decoded."""
    names: list[str] = []
    decode = vistok.data.load.decode_image
    monkeypatch.setattr(vistok.data.load, "decode_image", lambda *a, **k: names.append(a[1]) or decode(*a, **k))
    return names


def test_each_store_is_the_same_to_the_byte_as_from_a_run_of_its_tokenizer_alone(tokenizers, photos, tmp_path, decoded):
    (photos / "p1.png").write_bytes((photos / "p1.png").read_bytes()[:200])
    summaries, heard = together(tokenizers, photos, tmp_path / "together")
    assert len(decoded) == len(set(decoded)) == 9 and heard == 27
    for number, tokenizer in enumerate(tokenizers):
        alone = encode_folder(tokenizer, photos, tmp_path / f"alone{number}", FOUR, ONE_THREAD)
        assert files_of(tmp_path / f"alone{number}") == files_of(tmp_path / "together" / str(number))
        assert replace(alone, seconds=0, images_per_second=0) == replace(
            summaries[number], seconds=0, images_per_second=0
        )
    assert [summary.errors for summary in summaries] == [1, 1, 1]
    crops = [TokenStore(tmp_path / "together" / str(number)).rows[0]["crop"] for number in (0, 2)]
    assert crops[0] is None and crops[1] is not None


def test_what_one_tokenizer_cannot_arrange_is_an_error_of_its_store_alone(tokenizers, photos, tmp_path):
    class Dislikes(Preprocess):
        def arrange(self, pixels):
            if pixels.shape[0] == 22:
                raise ValueError("too flat")
            return super().arrange(pixels)

    tokenizers[1].preprocess = Dislikes()
    summaries, heard = together(tokenizers, photos, tmp_path)
    assert [summary.errors for summary in summaries] == [0, 3, 0] and heard == 27
    assert "too flat" in (tmp_path / "1" / "errors" / "00000.jsonl").read_text()


def test_only_what_is_left_is_done_and_a_store_may_have_been_begun_alone(tokenizers, photos, tmp_path, decoded):
    encode_folder(tokenizers[0], photos, tmp_path / "0", FOUR, ONE_THREAD)
    (tmp_path / "0" / "commits" / "00001.json").unlink()
    before = files_of(tmp_path / "0")
    decoded.clear()
    summaries, heard = together(tokenizers[:2], photos, tmp_path)
    assert [summary.shards_skipped for summary in summaries] == [2, 0] and len(decoded) == 9 and heard == 18
    assert files_of(tmp_path / "0") == before
    decoded.clear()
    assert [summary.encoded for summary in together(tokenizers[:2], photos, tmp_path)[0]] == [0, 0] and not decoded


def test_an_error_of_one_store_reaches_the_caller_and_stops_no_thread(tokenizers, photos, tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "shards").write_text("in the way")
    with pytest.raises((OSError, ValueError), match="shards|other files"):
        together(tokenizers[:2], photos, tmp_path)
    (tmp_path / "1" / "shards").unlink()
    together(tokenizers[:2], photos, tmp_path)
    assert len(TokenStore(tmp_path / "0")) == len(TokenStore(tmp_path / "1")) == 9


def test_a_disk_that_refuses_one_store_leaves_the_others_to_go_on(tokenizers, photos, tmp_path, monkeypatch):
    write = vistok.data.encode_shard.write_data

    def refuse(files, shard, *arguments, **named):
        if files.name.endswith("/1"):
            raise OSError(28, "No space left on device", files.name)
        return write(files, shard, *arguments, **named)

    monkeypatch.setattr(vistok.data.encode_shard, "write_data", refuse)
    with pytest.raises(OSError, match="No space left"):
        together(tokenizers[:2], photos, tmp_path)
    monkeypatch.undo()
    summaries, _ = together(tokenizers[:2], photos, tmp_path)
    assert [summary.images for summary in summaries] == [9, 9]


def test_plans_of_other_pictures_or_shards_do_not_go_together(tokenizers, photos, tmp_path):
    plans = [make_plan(tokenizers[0], photos, FOUR), make_plan(tokenizers[1], photos, replace(FOUR, shard_samples=5))]
    with pytest.raises(ValueError, match=r"plans of the same shard_samples, got \[4, 5\]"):
        run_plans(plans, tokenizers[:2], [tmp_path / "a", tmp_path / "b"])


@pytest.mark.slow
def test_worker_processes_change_no_byte(tokenizers, photos, tmp_path):
    together(tokenizers, photos, tmp_path / "here")
    summaries, heard = together(tokenizers, photos, tmp_path / "there", Schedule(workers=2, decode_threads=2))
    assert heard == 27 and [summary.images for summary in summaries] == [9, 9, 9]
    for number in range(3):
        assert files_of(tmp_path / "here" / str(number)) == files_of(tmp_path / "there" / str(number))
