"""A folder of JPEGs to tokens: our pipeline against a plain loop, and against the tokenizer alone on ready tensors."""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import vistok
from vistok.bench.timing import Timing, in_turn
from vistok.data.encode import encode_folder
from vistok.data.plan import EncodeSettings
from vistok.layers.preprocess import Preprocess
from vistok.protocols import Tokenizer
from vistok.rows import grid_coords
from vistok.tokens import TokenSpec, TokenTensor

SIDE = 512
_BATCH = 8


class Nothing(nn.Module):
    """A tokenizer that computes nothing, one id per 16x16 pixels: what is left is the pipeline's own time."""

    cannot = frozenset({"decode"})
    spec = TokenSpec("nothing", 1, (1024,), patch=16)
    preprocess = Preprocess()

    def encode(self, images: Tensor, *, budget: int | Tensor | None = None, **options: Any) -> TokenTensor:
        """images [B, 3, H, W] -> ids [B, h*w], all zero."""
        rows, cols = images.shape[2] // 16, images.shape[3] // 16
        spec = TokenSpec("nothing", 1, (1024,), (rows, cols), 16, (images.shape[2], images.shape[3]))
        ids = torch.zeros(len(images), rows * cols, dtype=torch.int64)
        return TokenTensor(indices=ids, coords=grid_coords(rows, cols, len(images)), spec=spec)

    def decode(self, tokens: TokenTensor) -> Tensor:
        """There is nothing to decode."""
        raise NotImplementedError("nothing: keeps no picture")


def run(rounds: int = 7, *, pictures: int = 2000, encoded: int = 400) -> Iterator[tuple[str, list[Timing]]]:
    """Yield the case and its timings, the pipeline first; a call is a whole run over `pictures` or `encoded` JPEGs."""
    with TemporaryDirectory(prefix="vistok-bench-") as folder:
        root = Path(folder)
        write_pictures(root / "many", pictures)
        write_pictures(root / "some", encoded)
        nothing = Nothing()
        candidates = {
            "vistok": _pipeline(nothing, root / "many", root),
            "plain loop (Pillow, batch 1, .npy each)": lambda: plain_loop(nothing, root / "many", root / "loop"),
        }
        yield f"no-op tokenizer, {pictures} JPEGs of {SIDE} px", in_turn(candidates, rounds)
        model = vistok.tokenizer("vq_nano", pretrained=True)
        candidates = {
            "vistok": _pipeline(model, root / "some", root),
            "tokenizer alone, images ready in memory": lambda: _alone(model, encoded),
        }
        yield f"vq_nano, {encoded} JPEGs of {SIDE} px", in_turn(candidates, rounds)


def write_pictures(folder: Path, number: int) -> None:
    """Write seeded JPEGs with smooth and rough parts, about as many bytes as photographs of this size have."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in range(number):
        pixels = np.zeros((SIDE, SIDE, 3), np.float32)
        for cells, strength in ((4, 60.0), (32, 30.0), (256, 12.0)):
            noise = rng.normal(0, strength, (cells, cells, 3)).astype(np.float32)
            planes = [Image.fromarray(noise[:, :, c]).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for c in range(3)]
            pixels += np.stack([np.asarray(plane) for plane in planes], axis=2)
        Image.fromarray((pixels + 128).clip(0, 255).astype(np.uint8)).save(folder / f"{name:05d}.jpg", quality=90)


def plain_loop(tokenizer: Tokenizer, folder: Path, out: Path) -> None:
    """What one writes first: Pillow, torchvision's to_tensor, encode one, save one file."""
    from torchvision.transforms.functional import to_tensor

    out.mkdir(exist_ok=True)
    with torch.inference_mode():
        for path in sorted(folder.iterdir()):
            image = to_tensor(Image.open(path).convert("RGB"))
            ids = tokenizer.encode(image[None]).indices
            assert ids is not None
            np.save(out / f"{path.stem}.npy", ids[0].to(torch.uint16).numpy())


def _pipeline(tokenizer: Tokenizer, folder: Path, root: Path) -> Callable[[], object]:
    stores = count()
    settings = EncodeSettings(batch=_BATCH, threads=torch.get_num_threads())
    return lambda: encode_folder(tokenizer, folder, root / f"store-{tokenizer.spec.name}-{next(stores)}", settings)


def _alone(tokenizer: Tokenizer, pictures: int) -> None:
    images = torch.rand(_BATCH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last)  # the faster layout, and what decoders give
    with torch.inference_mode():
        for _ in range(-(-pictures // _BATCH)):
            tokenizer.encode(images)
