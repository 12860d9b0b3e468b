import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from skimage import data

import vistok
from vistok.data.encode import encode_folder
from vistok.data.plan import EncodeSettings
from vistok.data.store import TokenStore


def tiny_tokenizer(name: str, seed: int = 0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return vistok.tokenizer(name, **vistok.info("tokenizer", name).tiny).eval()


@pytest.fixture
def discrete():
    return tiny_tokenizer("vq_nano")


@pytest.fixture
def continuous():
    return tiny_tokenizer("kl_nano")


@pytest.fixture
def other_weights():
    return tiny_tokenizer("vq_nano", seed=1)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Nine pictures of three sizes, interleaved, two folders deep."""
    return write_photos(tmp_path / "photos")


@pytest.fixture(scope="session")
def encoded(tmp_path_factory) -> Path:
    """The store of `photos` by `discrete`, shards of 4, 4 and 1. Do not write into it: copy it."""
    folder = tmp_path_factory.mktemp("encoded")
    settings = EncodeSettings(shard_samples=4, threads=1)
    encode_folder(tiny_tokenizer("vq_nano"), write_photos(folder / "photos"), folder / "store", settings)
    return folder / "store"


@pytest.fixture
def store(encoded, discrete, tmp_path) -> TokenStore:
    """A copy of `encoded`, opened."""
    return TokenStore(shutil.copytree(encoded, tmp_path / "store"), tokenizer=discrete)


def write_photos(folder: Path) -> Path:
    (folder / "sub").mkdir(parents=True)
    pixels = data.astronaut()
    for number in range(9):
        height, width = [(40, 56), (32, 32), (22, 37)][number % 3]
        crop = pixels[20 * number : 20 * number + height, 30 * number : 30 * number + width]
        path = folder / ("sub" if number > 6 else "") / f"p{number}.png"
        Image.fromarray(crop).save(path)
        os.utime(path, ns=(10**18, 10**18 + number))
    return folder
