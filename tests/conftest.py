"""Fixtures for every test. Nothing is seeded globally: a test that draws numbers takes a generator."""

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


# The tests' tensors are tiny: a second thread costs more in waiting than it saves.
torch.set_num_threads(1)
