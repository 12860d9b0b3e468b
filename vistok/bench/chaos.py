"""An encode run in which everything goes wrong, against a quiet one: the same bytes must be there in the end.

`vistok encode` writes to an S3 server on this machine which fails 5 % of all requests, half of them after it has done
what was asked. Workers and drivers are killed (SIGKILL) at moments drawn by the seed, and once the server is full. The
command is given again until it ends by itself. Times say what the failures cost on this machine.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

import vistok
from vistok.bench._local_s3 import FailingApp, local_s3
from vistok.bench.timing import Timing
from vistok.data.encode import encode_folder
from vistok.data.plan import EncodeSettings
from vistok.data.shard_content import CommittedStore, open_committed
from vistok.data.verify import verify_store

SIDE = 64
_BROKEN = 50  # one picture in so many cannot be read
_FAILURES = 0.05
_POLL_SECONDS = 0.01
_DEADLINE_SECONDS = 3600.0
COLUMNS = {
    "runs": "{0.runs}",
    "workers killed": "{0.workers_killed}",
    "drivers killed": "{0.drivers_killed}",
    "full": "{0.full}",
    "requests failed": "{0.requests_failed} of {0.requests}",
    "images": "{0.images}",
    "errors": "{0.errors}",
}


@dataclass(frozen=True)
class ChaosTiming(Timing):
    """runs: how often the command was given. full: how often one ended because the server took no more."""

    runs: int = 1
    workers_killed: int = 0
    drivers_killed: int = 0
    full: int = 0
    requests: int = 0
    requests_failed: int = 0
    images: int = 0
    errors: int = 0


def run(rounds: int = 7, *, pictures: int = 5000, seed: int = 0, seeds: int = 1) -> Iterator[tuple[str, list[Timing]]]:
    """Yield a case and its timings, the quiet run first, for so many seeds from `seed` on.

    rounds: without effect; this checks, and once is enough. Raises: AssertionError if a store does not verify, if a
    picture is there twice or not at all, or if bytes differ.
    """
    for number in range(seed, seed + seeds):
        with TemporaryDirectory(prefix="vistok-chaos-") as folder:
            yield f"{pictures} images of {SIDE} px, seed {number}", chaos(Path(folder), pictures, number)


def chaos(folder: Path, pictures: int, seed: int, *, workers: int = 2) -> list[Timing]:
    """A quiet run and one in chaos over so many pictures, which are written into `folder`. Raises: as `run`."""
    keys = write_pictures(folder / "pictures", pictures, seed)
    settings = EncodeSettings(shard_samples=max(10, pictures // 100), threads=1, batch=8)
    tokenizer = vistok.tokenizer("vq_nano", pretrained=True)
    begin = time.perf_counter()
    encode_folder(tokenizer, folder / "pictures", folder / "quiet", settings)
    quiet = time.perf_counter() - begin
    with local_s3(seed) as (bucket, app):
        url = f"{bucket}/chaos"
        command = [sys.executable, "-m", "vistok.cli.main", "encode", str(folder / "pictures"), url]
        command += ["--workers", str(workers), "--shard-samples", str(settings.shard_samples), "--threads", "1"]
        command += ["--batch", str(settings.batch), "--max-restarts", "1000", "--tile", "0"]
        app.rate = _FAILURES
        begin = time.perf_counter()
        storm = _Storm(command, app, random.Random(seed), kills=max(3, pictures // 250), log=folder / "driver.log")
        storm.run()
        taken = time.perf_counter() - begin
        # The server still fails: reading bears it as writing does.
        assert verify_store(url) == {}, verify_store(url)
        there, expected = open_committed(url), open_committed(folder / "quiet")
        images, errors = _same(there, expected, keys)
        storm_timing = ChaosTiming(
            "chaos on S3", taken, taken / quiet, storm.runs, storm.workers_killed, storm.drivers_killed, storm.full,
            app.requests, app.failed, images, errors,
        )  # fmt: skip
    return [ChaosTiming("quiet, in a folder", quiet, 1.0, images=images, errors=errors), storm_timing]


def write_pictures(folder: Path, number: int, seed: int) -> list[str]:
    """Write seeded pictures of SIDE px, a few of which cannot be read; their names."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    names = [f"{at:06d}.png" for at in range(number)]
    for at, name in enumerate(names):
        cells = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(cells).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / name)
        if at % _BROKEN == _BROKEN - 1:
            (folder / name).write_bytes((folder / name).read_bytes()[:100])
    return names


class _Storm:
    """Gives a command again until it ends by itself, and lets happen what was drawn, one thing after the other."""

    def __init__(self, command: list[str], app: FailingApp, draws: random.Random, kills: int, log: Path) -> None:
        self.runs = self.workers_killed = self.drivers_killed = self.full = 0
        self._command, self._app, self._draws, self._log = command, app, draws, log
        left = ["worker"] * (kills - kills // 2) + ["driver"] * (kills // 2)
        draws.shuffle(left)
        left.insert(draws.randrange(len(left) + 1), "full")
        self._events = left

    def run(self) -> None:
        """Raises: AssertionError if a run fails for another reason than a full server, or none ever ends."""
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while True:
            code = self._run_once(deadline)
            self.runs += 1
            if code == 0:
                return
            assert time.monotonic() < deadline, f"{self._command} does not end; {self._log.read_text()[-2000:]}"

    def _run_once(self, deadline: float) -> int:
        with open(self._log, "wb") as log:
            driver = subprocess.Popen(self._command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            next_at = self._next_moment()
            while (code := driver.poll()) is None and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
                if self._events and self._app.puts >= next_at and self._happens(self._events[0], driver):
                    self._events.pop(0)
                    next_at = self._next_moment()
        finally:
            driver.kill()
            driver.wait()
        if code == 0 or driver.returncode < 0:
            return driver.returncode
        said = self._log.read_text(errors="replace")
        assert self._app.full and self._app.refused_as_full, f"a run failed: {said[-2000:]}"
        assert "Traceback" not in said and "run the same command again" in said, said[-2000:]
        self._app.full = False
        self.full += 1
        return code or 1

    def _next_moment(self) -> int:
        return self._app.puts + self._draws.randrange(1, 6)

    def _happens(self, event: str, driver: subprocess.Popen[bytes]) -> bool:
        """Whether it could be done now."""
        if event == "full":
            self._app.full = True
            return True
        if event == "driver":
            if self._app.full:  # this run is to end by itself
                return False
            driver.kill()
            self.drivers_killed += 1
            return True
        workers = _workers_of(driver.pid)
        if not workers:
            return False
        os.kill(self._draws.choice(workers), 9)
        self.workers_killed += 1
        return True


def _workers_of(pid: int) -> list[int]:
    import psutil

    try:
        children = psutil.Process(pid).children()
        # The other child of multiprocessing is its resource tracker.
        return [child.pid for child in children if any("spawn_main" in word for word in child.cmdline())]
    except psutil.Error:
        return []


def _same(there: CommittedStore, expected: CommittedStore, keys: list[str]) -> tuple[int, int]:
    """Images and errors, if every key is there once and every byte is the expected one. Raises: AssertionError."""
    there.check_complete(allow_incomplete=False)
    stored = [key for shard in there.commits for key in there.row_column(shard, "key").to_pylist()]
    failed = [error["key"] for shard in there.commits for error in there.errors(shard)]
    assert sorted(stored + failed) == sorted(keys), "expected every picture once, in the store or in its errors"
    assert json.dumps(there.dataset, sort_keys=True) == json.dumps(expected.dataset, sort_keys=True)
    for shard, record in expected.commits.items():
        assert there.commits[shard]["sha256"] == record["sha256"], f"shard {shard}: other bytes than in the quiet run"
        assert there.errors(shard) == expected.errors(shard), f"shard {shard}: other errors than in the quiet run"
    return len(stored), len(failed)
