"""Fixtures for every test. Nothing is seeded globally: a test that draws numbers takes a generator."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from skimage import data
from torch import Tensor


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def photograph() -> Tensor:
    """The centre of scikit-image's astronaut: [1, 3, 256, 256] float32 in [0, 1]. Do not write into it."""
    pixels = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None]
    return pixels[:, :, 128:384, 128:384].float() / 255


@pytest.fixture(scope="session")
def in_two_processes() -> Callable[..., list[Path]]:
    """Run a program in two processes: sys.argv is rank, the file they meet at, the file to write, and further words.

    Returns the two files, which lie in the folder that is given.
    """

    def run(program: str, folder: Path, *words: str | Path) -> list[Path]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "VISTOK_NO_PLUGINS": "1"}
        files = [folder / f"{rank}.pt" for rank in range(2)]
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", program, str(rank), folder / "store", file, *words],
                env=environment,
                cwd=Path(__file__).parents[1],
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank, file in enumerate(files)
        ]
        try:
            errors = [worker.communicate(timeout=300)[1] for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        assert [worker.returncode for worker in workers] == [0, 0], errors
        return files

    return run


# The tests' tensors are tiny: a second thread costs more in waiting than it saves.
torch.set_num_threads(1)
