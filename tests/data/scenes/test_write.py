import fcntl
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from skimage import data

from vistok.data.inputs.open import open_input
from vistok.data.scenes import questions_about, render, seeds_of
from vistok.data.scenes import write as module
from vistok.data.scenes.write import SceneSettings, write_scenes

SETTINGS = SceneSettings(count=7, split="test", first_seed=20, size=64, depth=True, masks=True)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(module, "_SHARD", 3)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "conversations.jsonl").read_text().splitlines()]


def test_a_folder_holds_pictures_conversations_and_rows_of_the_same_scenes(tmp_path):
    done: list[int] = []
    summary = write_scenes(tmp_path, SETTINGS, on_scenes=done.append)
    assert (summary.scenes, summary.rendered, done) == (7, 7, [3, 3, 1])
    tables = [pq.read_table(file) for file in sorted((tmp_path / "dataset/data").iterdir())]
    rows = [row for table in tables for row in table.to_pylist()]
    assert [row["seed"] for row in rows] == list(seeds_of("test")[20:27])
    asked = []
    for number, row in enumerate(rows):
        scene = render(row["seed"], 64)
        place = f"{number // 3:05d}/test_{20 + number:010d}.png"
        assert (np.asarray(Image.open(tmp_path / "images" / place)) == scene.image).all()
        assert (np.asarray(Image.open(tmp_path / "masks" / place)) == scene.instances).all()
        assert np.abs(np.asarray(Image.open(tmp_path / "depth" / place)) / 1000 - scene.depth).max() < 0.00051
        assert row["image"]["bytes"] == (tmp_path / "images" / place).read_bytes()
        own = {(question.kind, question.text, question.answer) for question in questions_about(scene.layout)}
        for turn, one in enumerate(row["questions"]):
            assert tuple(one.values()) in own
            asked.append(
                {
                    "id": f"test_{20 + number:010d}_{turn:02d}",
                    **{name: f"{name}/{place}" for name in ("depth", "masks")},
                    "image": f"images/{place}",
                    "conversations": [
                        {"from": "human", "value": f"<image>\n{one['question']}"},
                        {"from": "gpt", "value": one["answer"]},
                    ],
                    "seed": row["seed"],
                    "kind": one["kind"],
                }
            )
    assert _lines(tmp_path) == asked and summary.questions == len(asked) == 4 * 7
    assert Counter(line["kind"] for line in asked) == +Counter(summary.kinds)
    assert {kind: sum(times.values()) for kind, times in summary.answers.items()} == summary.kinds


def test_without_depth_and_masks_only_the_data_set_has_them(tmp_path):
    write_scenes(tmp_path, SceneSettings(count=2, questions_per_scene=1))
    assert {path.name for path in tmp_path.iterdir()} == {"scenes.json", "images", "conversations.jsonl", "dataset"}
    assert all(set(line) == {"id", "image", "conversations", "seed", "kind"} for line in _lines(tmp_path))
    (file,) = (tmp_path / "dataset/data").iterdir()
    assert {"depth", "masks"} < set(pq.read_schema(file).names)


def test_the_same_settings_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_scenes(tmp_path / name, SETTINGS)
    assert _files(tmp_path / "a") == _files(tmp_path / "b")


@pytest.mark.parametrize("stop_at", [0, 2, 4, 6])
def test_an_interrupted_run_leaves_nothing_half_written_and_the_next_goes_on(tmp_path, monkeypatch, stop_at):
    write_scenes(tmp_path / "whole", SETTINGS)

    def interrupted(layout, *rest):
        if layout.seed == SETTINGS.seeds[stop_at]:
            raise KeyboardInterrupt
        return render(layout, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "render", interrupted)
        write_scenes(tmp_path / "out", SETTINGS)
    whole, part = _files(tmp_path / "whole"), _files(tmp_path / "out")
    assert "conversations.jsonl" not in part and part.items() < whole.items()
    assert write_scenes(tmp_path / "out", SETTINGS).rendered == 7 - stop_at // 3 * 3
    assert _files(tmp_path / "out") == whole
    assert write_scenes(tmp_path / "out", SETTINGS).rendered == 0
    assert _files(tmp_path / "out") == whole


def test_what_a_killed_process_left_is_cleaned_away_and_made_again(tmp_path):
    write_scenes(tmp_path, SETTINGS)
    whole = _files(tmp_path)
    (tmp_path / "images/00002.tmp.99").mkdir()
    (tmp_path / "images/00002.tmp.99/x.png").write_bytes(b"half")
    (tmp_path / "conversations.jsonl.tmp.99").write_text("half")
    (tmp_path / "dataset/data/test-00001-of-00003.parquet").unlink()
    (tmp_path / "images/00001/test_0000000023.png").write_bytes(b"half")
    assert write_scenes(tmp_path, SETTINGS).rendered == 3
    assert _files(tmp_path) == whole


def test_a_folder_of_other_scenes_or_other_files_is_refused_by_what_differs(tmp_path):
    write_scenes(tmp_path / "out", SETTINGS)
    before = _files(tmp_path / "out")
    other = SceneSettings(count=7, split="test", first_seed=20, size=96, depth=True, masks=True)
    with pytest.raises(ValueError, match="out holds other scenes: size: there 64, here 96. Give the same settings"):
        write_scenes(tmp_path / "out", other)
    assert _files(tmp_path / "out") == before
    with pytest.raises(ValueError, match="expected a new or empty folder, got other files"):
        write_scenes(tmp_path, SETTINGS)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file: expected a folder for the scenes, got a file"):
        write_scenes(tmp_path / "file", SETTINGS)
    (tmp_path / "out/scenes.json").write_text("{")
    with pytest.raises(ValueError, match="scenes.json: expected JSON, got"):
        write_scenes(tmp_path / "out", SETTINGS)


def test_a_folder_that_another_process_writes_to_is_refused(tmp_path):
    write_scenes(tmp_path, SETTINGS)
    with open(tmp_path / "scenes.json", "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="expected a folder that no other process writes to"):
            write_scenes(tmp_path, SETTINGS)


def test_photographs_are_backgrounds_and_their_content_is_part_of_the_settings(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.fromarray(data.astronaut()).save(tmp_path / "photos/a.png")
    Image.fromarray(data.coffee()[:40, :50]).save(tmp_path / "photos/small.png")
    settings = SceneSettings(count=4, size=64)
    write_scenes(tmp_path / "drawn", settings)
    write_scenes(tmp_path / "taken", settings, tmp_path / "photos")
    for name in ("images/00000/train_0000000000.png", "images/00001/train_0000000003.png"):
        assert (tmp_path / "drawn" / name).read_bytes() != (tmp_path / "taken" / name).read_bytes()
    assert _lines(tmp_path / "drawn") == _lines(tmp_path / "taken")
    Image.fromarray(data.coffee()[:50, :50]).save(tmp_path / "photos/small.png")
    with pytest.raises(ValueError, match="taken holds other scenes: photographs: there '.*, here '"):
        write_scenes(tmp_path / "taken", settings, tmp_path / "photos")


def test_a_bad_photograph_or_none_is_named_before_anything_is_written(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(ValueError, match="photos: expected pictures .* found none"):
        write_scenes(tmp_path / "out", SETTINGS, tmp_path / "photos")
    (tmp_path / "photos/bad.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"photos/bad\.png"):
        write_scenes(tmp_path / "out", SETTINGS, tmp_path / "photos")
    with pytest.raises(FileNotFoundError, match="no such file or folder: .*nowhere"):
        write_scenes(tmp_path / "out", SETTINGS, tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()


def test_the_encode_plan_reads_the_data_set_and_the_pictures(tmp_path):
    write_scenes(tmp_path, SETTINGS)
    for source, captions in (("dataset", True), ("images", False)):
        pictures = open_input(tmp_path / source)
        entries = pictures.entries()
        assert len(entries) == 7
        assert (pictures.read(entries[0]).caption is not None) == captions


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"count": 0}, "count: expected 1 to 4294967296, got 0"),
        ({"first_seed": -1}, "first_seed: expected 0 to 4294967289, got -1"),
        ({"first_seed": 2**32 - 6}, "first_seed: expected 0 to 4294967289, got 4294967290"),
        ({"size": 63}, "size: expected 64 to 336, got 63"),
        ({"questions_per_scene": 0}, "questions_per_scene: expected 1 to 1000, got 0"),
        ({"split": "dev"}, "split: expected one of train, validation, test, heldout, got 'dev'"),
    ],
)
def test_settings_out_of_range_are_named(wrong, said):
    with pytest.raises(ValueError, match=said):
        SceneSettings(**{"count": 7, **wrong})
