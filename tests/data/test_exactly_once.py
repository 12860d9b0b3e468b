"""Whatever ends a run, the next one completes it to the bytes of a run that nothing ended."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import pytest

from vistok.data.encode import encode_folder, run_plan
from vistok.data.encode_shard import Schedule
from vistok.data.plan import EncodeSettings, make_plan
from vistok.data.shard import locked
from vistok.data.store import TokenStore
from vistok.data.verify import verify_store

ONE_THREAD = EncodeSettings(threads=1)
TWO = replace(ONE_THREAD, shard_samples=2)


def store_bytes(root: Path) -> dict[str, bytes]:
    """Everything in a store that must be the same bytes in every run."""
    found = [path for folder in ("shards", "errors") for path in (root / folder).glob("*") if ".tmp." not in path.name]
    return {str(path.relative_to(root)): path.read_bytes() for path in [*found, root / "dataset.json"]}


class _Killed(BaseException):
    """What no handler of a step catches, like the end of the process."""


def _stop_at(monkeypatch, call: str, step: int) -> None:
    real = getattr(os, call)
    calls = iter(range(10**6))

    def stopping(*args):
        if next(calls) == step:
            raise _Killed
        return real(*args)

    monkeypatch.setattr(os, call, stopping)


# Two shards, one with an error: moves dataset.json, tensors, rows, errors, commit; tensors, rows, commit.
@pytest.mark.parametrize(("call", "steps"), [("replace", 8), ("fsync", 16)])
def test_a_run_stopped_at_any_write_is_completed_by_the_next_with_no_duplicate(
    discrete, photos, tmp_path, monkeypatch, call, steps
):
    for name in ("p3", "p4", "p5", "p6", "sub/p7", "sub/p8"):
        (photos / f"{name}.png").unlink()
    (photos / "p0.png").write_bytes(b"no picture")
    encode_folder(discrete, photos, tmp_path / "whole", TWO)
    whole = store_bytes(tmp_path / "whole")
    for step in range(steps + 1):
        root = tmp_path / f"{call}{step}"
        with monkeypatch.context() as patch:
            _stop_at(patch, call, step)
            if step < steps:
                with pytest.raises(_Killed):
                    encode_folder(discrete, photos, root, TWO)
            else:
                encode_folder(discrete, photos, root, TWO)  # there is no further step
        encode_folder(discrete, photos, root, TWO)
        assert store_bytes(root) == whole
        assert TokenStore(root).keys == ["p1.png", "p2.png"]
        assert verify_store(root) == {}


# Imports once, then forks a child for every line of stdin: "CALL STEP" kills it at that call, "SECONDS" after a time.
_CHILDREN = """
import os, signal, sys, threading
import torch, vistok
torch.set_num_threads(1)
from vistok.data.encode import encode_folder
from vistok.data.plan import EncodeSettings
photos, checkpoint = sys.argv[1:]
tokenizer = vistok.tokenizer("vq_nano", checkpoint=checkpoint)

def kill_at(call, step):
    real, calls = getattr(os, call), iter(range(10**6))
    def killing(*args):
        if next(calls) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)
    setattr(os, call, killing)

for line in sys.stdin:
    out, *how = line.split()
    child = os.fork()
    if child == 0:
        if len(how) == 2:
            kill_at(how[0], int(how[1]))
        elif how:
            timer = threading.Timer(float(how[0]), os.kill, (os.getpid(), signal.SIGKILL))
            timer.daemon = True
            timer.start()
        encode_folder(tokenizer, photos, out, EncodeSettings(shard_samples=2, threads=1))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


@pytest.fixture
def children(discrete, photos, tmp_path):
    """Call with a line: the exit status of a child that encodes `photos` and is killed as the line says."""
    discrete.save_pretrained(tmp_path / "model")
    command = [sys.executable, "-c", _CHILDREN, str(photos), str(tmp_path / "model")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def run(line: str) -> int:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        yield run
        process.stdin.close()


@pytest.mark.slow
@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_process_killed_at_any_write_is_completed_by_the_next(photos, tmp_path, children, call):
    (photos / "p0.png").write_bytes(b"no picture")
    assert children(f"{tmp_path}/whole") == 0
    for step in range(40):
        root = tmp_path / f"{call}{step}"
        status = children(f"{root} {call} {step}")
        assert children(f"{root}") == 0
        assert store_bytes(root) == store_bytes(tmp_path / "whole")
        assert verify_store(root) == {}
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert status == 0 and step >= 15  # five shards of three writes, dataset.json and an error file


@pytest.mark.slow
def test_a_run_killed_at_twenty_random_moments_ends_with_the_bytes_of_one_that_was_not(photos, tmp_path, children):
    for path in list(photos.glob("*.png")):
        for number in range(8):
            shutil.copy2(path, photos / f"{path.stem}-{number}.png")
    begin = time.monotonic()
    assert children(f"{tmp_path}/whole") == 0
    whole = time.monotonic() - begin
    root = tmp_path / "store"
    moments = random.Random(0)
    killed = [children(f"{root} {moments.uniform(0.0, whole / 5)}") for _ in range(20)]
    assert -signal.SIGKILL in killed and set(killed) <= {0, -signal.SIGKILL}
    assert children(f"{root}") == 0
    assert store_bytes(root) == store_bytes(tmp_path / "whole")
    assert len(set(TokenStore(root).keys)) == len(TokenStore(root)) == 65


_LIMITED = """
import resource, signal, sys
import torch, vistok
from vistok.cli.main import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.exit(main(sys.argv[2:]))
"""


def _encode_with_file_limit(limit: int, photos: Path, model: Path, out: Path) -> subprocess.CompletedProcess[str]:
    arguments = ["encode", str(photos), str(out), "--checkpoint", str(model), "--shard-samples", "4", "--threads", "1"]
    command = [sys.executable, "-c", _LIMITED, str(limit), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_a_disk_that_takes_no_more_ends_the_run_with_the_files_name_and_the_next_run_completes_it(
    discrete, photos, tmp_path
):
    discrete.save_pretrained(tmp_path / "model")
    for limit in (100, 2500):  # before dataset.json is whole, and before a shard is
        root = tmp_path / str(limit)
        stopped = _encode_with_file_limit(limit, photos, tmp_path / "model", root)
        assert stopped.returncode == 1
        assert os.strerror(errno.EFBIG) in stopped.stderr and str(root) in stopped.stderr
        assert "Traceback" not in stopped.stderr
        assert not list(root.rglob("*.tmp.*"))
        if limit > 1000:
            assert verify_store(root) == {}
        finished = _encode_with_file_limit(resource.RLIM_INFINITY, photos, tmp_path / "model", root)
        assert finished.returncode == 0, finished.stderr
        assert verify_store(root) == {} and len(TokenStore(root)) == 9


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_no_byte_differs(discrete, photos, tmp_path):
    encode_folder(discrete, photos, tmp_path / "whole", replace(ONE_THREAD, shard_samples=1))
    plan = make_plan(discrete, photos, replace(ONE_THREAD, shard_samples=1))
    deaths: list[int] = []

    def kill_a_worker(count: int) -> None:
        if count and not deaths:
            (worker, *_) = active_children()
            worker.kill()
            deaths.append(worker.pid)

    summary = run_plan(plan, discrete, tmp_path / "store", Schedule(workers=2), on_images=kill_a_worker)
    assert deaths and summary.images == 9
    assert store_bytes(tmp_path / "store") == store_bytes(tmp_path / "whole")
    deaths.clear()
    with pytest.raises(ChildProcessError, match="died 1 times.*run the same command again"):
        run_plan(plan, discrete, tmp_path / "other", Schedule(workers=2, max_restarts=0), on_images=kill_a_worker)
    run_plan(plan, discrete, tmp_path / "other")
    assert store_bytes(tmp_path / "other") == store_bytes(tmp_path / "whole")


@pytest.mark.slow
def test_the_workers_of_a_killed_run_end_with_it(discrete, photos, tmp_path):
    discrete.save_pretrained(tmp_path / "model")
    arguments = [str(photos), str(tmp_path / "store"), "--checkpoint", str(tmp_path / "model"), "--workers", "2"]
    command = [sys.executable, "-m", "vistok.cli.main", "encode", *arguments, "--shard-samples", "1"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "store").glob("commits/*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while _group_lives(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _group_lives(process.pid)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_store_that_another_process_clears_up_is_not_written(discrete, photos, tmp_path):
    encode_folder(discrete, photos, tmp_path / "store", TWO)
    with (
        locked(tmp_path / "store", exclusive=True),
        pytest.raises(ValueError, match="no other process works on"),
    ):
        encode_folder(discrete, photos, tmp_path / "store", TWO)


def test_shards_with_too_many_errors_are_not_committed_and_all_others_are(discrete, photos, tmp_path):
    (photos / "p0.png").write_bytes(b"no picture")
    plan = make_plan(discrete, photos, TWO)
    with pytest.raises(ValueError, match=r"more than 10.00% of the pictures failed in 1 shards \(0\)"):
        run_plan(plan, discrete, tmp_path / "store", Schedule(max_error_rate=0.1))
    assert len(TokenStore(tmp_path / "store")) == 7
    assert json.loads((tmp_path / "store/errors/00000.jsonl").read_text())["key"] == "p0.png"
    summary = run_plan(plan, discrete, tmp_path / "store", Schedule(max_error_rate=0.5))
    assert (summary.images, summary.errors) == (8, 1)


def test_shards_with_errors_are_encoded_again_when_asked(discrete, photos, tmp_path):
    encode_folder(discrete, photos, tmp_path / "whole", TWO)
    plan = make_plan(discrete, photos, TWO)
    os.rename(photos / "p0.png", photos / "away")
    assert run_plan(plan, discrete, tmp_path / "store").errors == 1
    os.rename(photos / "away", photos / "p0.png")
    assert run_plan(plan, discrete, tmp_path / "store").encoded == 0
    summary = run_plan(plan, discrete, tmp_path / "store", Schedule(retry_errors=True))
    assert (summary.encoded, summary.errors) == (2, 0)
    assert store_bytes(tmp_path / "store") == store_bytes(tmp_path / "whole")
