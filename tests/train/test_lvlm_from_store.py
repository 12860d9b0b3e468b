import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from vistok.data.shard import ROW_SCHEMA, Sample, write_shard
from vistok.data.store import TokenStore
from vistok.lvlm.micro import MicroSettings, make_model, make_processor
from vistok.lvlm.token_families import seed
from vistok.lvlm.vocabulary import VocabMap
from vistok.tokens import TokenSpec
from vistok.train.checkpoint import read_state
from vistok.train.lvlm_from_store import Trainer, Training, train

SAMPLES, CODES = 58, 8
QUESTIONS = pa.list_(pa.struct([("question", pa.string()), ("answer", pa.string())]))
TINY = MicroSettings(
    side=64, vision_width=32, vision_layers=1, vision_heads=2, text_width=32, text_layers=2, text_heads=2,
    text_kv_heads=1,
)  # fmt: skip
COLORS, SHAPES = ("red", "blue"), ("star", "ring")


def write_store(root: Path, samples: int, *, sizes: tuple[int, ...] = (CODES,), asked: bool = True) -> Path:
    """Pictures of 4 to 6 codes; the first code tells the colour and the second one the shape of what is asked about."""
    root.mkdir(parents=True)
    dataset = {"format": "vistok-store", "version": 1, "plan_hash": root.name, "num_shards": 2, "tokenizer": "made"}
    dataset |= {"fingerprint": f"made of {sizes}", "columns": {"indices": "uint16"}}
    (root / "dataset.json").write_text(json.dumps(dataset))
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(samples):
        ids = torch.randint(CODES, (4 + number % 3, *sizes[1:]), generator=generator).to(torch.uint16)
        color, shape = (int(ids.flatten()[place]) % 2 for place in range(2))
        questions = [
            {"question": "what color is the nearest thing ?", "answer": COLORS[color]},
            {"question": "what shape is the farthest thing ?", "answer": SHAPES[shape]},
        ]
        row = {"key": f"{root.name}-{number:02d}", "questions": questions if asked else None}
        made.append(Sample(row, TokenSpec("made", codebook_sizes=sizes, order="1d"), {"indices": ids}))
    schema = pa.schema([*ROW_SCHEMA, ("questions", QUESTIONS)])
    header = {"tokenizer": "made", "fingerprint": dataset["fingerprint"]}
    for shard, part in enumerate((made[:20], made[20:])):
        write_shard(root, shard, part, [], header=header, plan_hash=root.name, schema=schema)
    return root


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("start") / "model"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make_model(TINY).save_pretrained(folder)
    make_processor(TINY).save_pretrained(folder)
    return folder


@pytest.fixture
def training(start, tmp_path) -> Training:
    store = write_store(tmp_path / "pictures", SAMPLES)
    return Training(
        out=str(tmp_path / "run"), stores=[str(store)], start=str(start), steps=15, batch=4, pool=4, micro_batch=3,
        rate=1e-2, warmup=3, log_samples=True, save_every=3, log_every=1,
    )  # fmt: skip


def rows_of(out: str | Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (Path(out) / name).read_text().splitlines()]


def weights_of(out: str | Path) -> torch.Tensor:
    state = read_state(Path(out))
    return torch.cat([value.flatten() for value in state["model"].values()])


def check_epoch(out: str | Path) -> None:
    """Every sample of the store once, and the loss falls."""
    seen = [tuple(sample) for row in rows_of(out, "samples.jsonl") for sample in row["samples"]]
    assert Counter(seen) == {(0, 0, f"pictures-{number:02d}"): 1 for number in range(SAMPLES)}
    rows = rows_of(out, "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 16))
    losses = [row["loss"] for row in rows]
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])


def test_an_epoch_shows_every_sample_once_and_lowers_the_loss(training):
    metrics = train(training)
    check_epoch(training.out)
    assert metrics == rows_of(training.out, "metrics.jsonl")[-1]


@pytest.mark.slow
def test_answers_are_read_off_the_codes_and_not_guessed(training):
    train(replace(training, steps=300, batch=16, micro_batch=16, rate=3e-3, save_every=300))
    last = rows_of(training.out, "metrics.jsonl")[-20:]
    # Each answer is one word of two and the end, so a model that does not look is right in 75 %.
    assert sum(row["accuracy"] for row in last) / len(last) > 0.9


def test_a_run_that_was_interrupted_ends_with_the_same_bits(training, tmp_path):
    whole = replace(training, out=str(tmp_path / "whole"), steps=9)
    train(whole)

    def stop(step, values):
        if step == 5:
            raise KeyboardInterrupt

    interrupted = replace(training, steps=9)
    with pytest.raises(KeyboardInterrupt):
        train(interrupted, stop)
    assert len(rows_of(training.out, "samples.jsonl")) == 5 and read_state(Path(training.out))["step"] == 3
    with open(Path(training.out) / "samples.jsonl", "a") as log:
        log.write('{"step": 6, "samp')  # as a kill in the middle of a write leaves it
    train(interrupted)
    assert torch.equal(weights_of(whole.out), weights_of(training.out))
    assert rows_of(whole.out, "samples.jsonl") == rows_of(training.out, "samples.jsonl")


def test_passes_of_any_size_have_the_gradient_of_the_whole_batch(training, tmp_path):
    ends = []
    for size in (1, 4):
        one = replace(training, out=str(tmp_path / str(size)), steps=3, micro_batch=size)
        train(one)
        ends.append(weights_of(one.out))
    torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-4)


def test_the_model_folder_loads_with_transformers_alone_and_knows_the_codes(training):
    train(replace(training, steps=3))
    folder = Path(training.out) / "model"
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    vocabulary = VocabMap.of(processor.tokenizer, seed(CODES))
    rows = model.get_input_embeddings().weight
    assert max(vocabulary.codes) < len(rows)
    trained = read_state(Path(training.out))["model"]["model.language_model.embed_tokens.weight"]
    assert torch.equal(rows, trained.half().float())


def test_the_tower_stays_as_it_was_and_the_language_model_does_not(training, start):
    train(replace(training, steps=3))
    before = LlavaForConditionalGeneration.from_pretrained(start).state_dict()
    after = read_state(Path(training.out))["model"]
    for name, value in before.items():
        still = "vision_tower" in name or "multi_modal_projector" in name
        if still or ("layers" in name and value.ndim == 2):
            assert torch.equal(value, after[name]) == still, name


def test_stores_are_mixed_by_weight_and_few_questions_are_asked_in_turn(training, tmp_path):
    other = write_store(tmp_path / "others", 10)
    stores = [*training.stores, str(other)]
    trainer = Trainer(replace(training, stores=stores, weights=[1, 1], questions=1))
    drawn = [draw for portion in trainer.stream for draw in portion.draws]
    assert Counter(draw.store for draw in drawn) == {0: SAMPLES, 1: SAMPLES}
    turns = {(draw.sample, trainer._turns(draw)[0].answer in COLORS) for draw in drawn if draw.store == 1}
    assert all(len(trainer._turns(draw)) == 1 for draw in drawn)
    assert len(turns) > 15  # both questions about most of the ten


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sizes": (CODES, CODES)}, "expected ids of one codebook, made has 2"),
        ({"asked": False}, "expected a column questions .* or the columns question and answer"),
    ],
)
def test_stores_that_do_not_serve_are_refused(training, tmp_path, change, said):
    odd = write_store(tmp_path / "odd", 4, **change)
    with pytest.raises(ValueError, match=said):
        Trainer(replace(training, stores=[str(odd)]))
    with pytest.raises(ValueError, match="as a list of folders"):
        replace(training, stores=[])


def test_stores_of_two_tokenizers_are_refused(training, tmp_path):
    odd = write_store(tmp_path / "odd", 4)
    record = json.loads((odd / "dataset.json").read_text())
    (odd / "dataset.json").write_text(json.dumps(record | {"fingerprint": "another"}))
    with pytest.raises(ValueError, match="stores of one tokenizer"):
        Trainer(replace(training, stores=[*training.stores, str(odd)]))
    assert len(TokenStore(odd)) == 4


# Imports once and forks a process for each rank of each run. A run that shall be killed waits behind its 8th step, the
# last checkpoint being that of step 6, until this program kills all of its ranks.
PROGRAM = """
import json, os, signal, sys, time
from dataclasses import replace
from pathlib import Path
import accelerate, torch, transformers
import vistok.lvlm.image_dialogue_collator, vistok.lvlm.load, vistok.lvlm.new_rows
from vistok.train.lvlm_from_store import Training, train

torch.set_num_threads(1)
given = Training(**json.loads(sys.argv[1]))
port = int(sys.argv[2])

def run(out, world, killed):
    global port
    port += 1
    pids = []
    for rank in range(world):
        pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        if world > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            os.environ |= {"LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        code = 1
        try:
            train(replace(given, out=out), lambda step, values: time.sleep(600) if killed and step == 8 else None)
            code = 0
        finally:
            os._exit(code)
    if killed:
        log = Path(out) / "samples.jsonl"
        until = time.monotonic() + 240
        while not log.is_file() or len(log.read_text().splitlines()) < 8:
            assert time.monotonic() < until, "no eighth step"
            assert os.waitpid(pids[0], os.WNOHANG) == (0, 0), "ended early"
            time.sleep(0.05)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert ends == [-9 if killed else 0] * world, ends

run(given.out + "/whole", 1, False)
for name, first, second in (("fewer", 2, 1), ("more", 1, 2)):
    run(f"{given.out}/{name}", first, True)
    (Path(given.out) / f"{name}.txt").write_text((Path(given.out) / name / "samples.jsonl").read_text())
    run(f"{given.out}/{name}", second, False)
"""


@pytest.mark.slow
def test_a_run_killed_mid_epoch_goes_on_with_other_processes_and_neither_repeats_nor_loses_a_sample(training):
    settings = {name: value for name, value in vars(training).items() if name != "weights"}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "VISTOK_NO_PLUGINS": "1"}
    port = str(20000 + os.getpid() % 20000)
    command = [sys.executable, "-c", PROGRAM, json.dumps(settings), port]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stderr[-3000:]
    whole = Path(training.out) / "whole"
    check_epoch(whole)
    for name in ("fewer", "more"):
        out = Path(training.out) / name
        check_epoch(out)
        killed = [json.loads(line) for line in out.with_suffix(".txt").read_text().splitlines()]
        assert [row["step"] for row in killed] == list(range(1, 9))
        for row, same in zip(rows_of(out, "samples.jsonl"), rows_of(whole, "samples.jsonl"), strict=True):
            assert sorted(row["samples"]) == sorted(same["samples"])
        torch.testing.assert_close(weights_of(out), weights_of(whole), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_accelerate_launches_two_processes_that_learn_what_one_does(training, tmp_path):
    options = {
        name: getattr(training, name) for name in ("stores", "start", "batch", "pool", "micro_batch", "log_samples")
    }
    options |= {"save_every": 3, "log_every": 1}
    words = ["train", "micro_lvlm_store", "--steps", "3", "--options", json.dumps(options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    # --cpu would start a single process: accelerate leaves several without GPUs to MPI. These find none and take gloo.
    launch = ["-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--main_process_port", str(20000 + os.getpid() % 20000), "-m", "vistok.cli.main"]
    told = {}
    for name, first in (("two", launch), ("one", ["-m", "vistok.cli.main"])):
        numbers = tmp_path / f"{name}.json"
        command = [sys.executable, *first, *words[:2], str(tmp_path / name), *words[2:], "--json", str(numbers)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=540)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stderr.replace("\n", "").count("/model: ") == 1  # a long path is wrapped
        told[name] = json.loads(numbers.read_text())
    assert told["two"]["step"] == 3 and told["two"]["loss"] == pytest.approx(told["one"]["loss"], rel=1e-4)
    rows = [rows_of(tmp_path / name, "samples.jsonl") for name in ("two", "one")]
    assert [sorted(row["samples"]) for row in rows[0]] == [sorted(row["samples"]) for row in rows[1]]
    # Each process has every other sample, and they are told one process behind the other.
    assert rows[0] != rows[1]
