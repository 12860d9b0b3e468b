"""The paper's finding in small: tuning raises what is understood, and only L_vq keeps what is reconstructed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import vistok
from vistok.metrics.reconstruction import psnr
from vistok.train.ett import Trainer, Training
from vistok.train.ett_model import Batch, EndToEnd
from vistok.train.ett_stages import Stage

SIDE, PATCH = 16, 8
TINTS = 0.08 * torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, -1.0, 1.0], [0.0, 1.0, -1.0]])
FIRST_WORD = 3
WHOLE = {"tokenizer": 3e-3, "projector": 3e-3, "language": 3e-3}
TABLE: list[dict[str, Any]] = [
    {"name": "start", "trained": ["tokenizer"], "frozen": ["projector", "language"], "losses": {"vq": 1.0},
     "learning_rate": 5e-3, "steps": 200, "batch": 16},
    {"name": "align", "trained": ["projector"], "frozen": ["tokenizer", "language"], "losses": {"caption": 1.0},
     "learning_rate": 5e-3, "steps": 30, "batch": 16, "stream": 1},
    {"name": "frozen", "trained": ["projector", "language"], "frozen": ["tokenizer"], "losses": {"caption": 1.0},
     "learning_rate": {"projector": 3e-3, "language": 3e-3}, "steps": 80, "batch": 16, "stream": 2},
    {"name": "caption", "trained": ["tokenizer", "projector", "language"], "frozen": [], "losses": {"caption": 1.0},
     "learning_rate": WHOLE, "steps": 80, "batch": 16, "stream": 2},
    {"name": "both", "trained": ["tokenizer", "projector", "language"], "frozen": [],
     "losses": {"caption": 1.0, "vq": 0.25}, "learning_rate": WHOLE, "steps": 80, "batch": 16, "stream": 2},
]  # fmt: skip


def pictures(items: int, number: int) -> Batch:
    """Four greys, and over all of them a faint tint that one word names."""
    draw = torch.Generator().manual_seed(number)
    grey = 0.1 + 0.8 * torch.rand(items, 1, 2, 2, generator=draw)
    tints = torch.randint(len(TINTS), (items, 1), generator=draw)
    images = grey.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3) + TINTS[tints[:, 0]][:, :, None, None]
    ids = tints + FIRST_WORD
    return Batch(images, ids, ids, torch.tensor([1]))


def batches(stage: Stage, number: int) -> Batch:
    return pictures(stage.batch, number)


def model() -> EndToEnd:
    torch.manual_seed(0)
    tokenizer: Any = vistok.tokenizer(
        "ett_nano", patch=PATCH, width=32, fine_width=16, encoder_blocks=1, decoder_blocks=1, fine_blocks=1,
        quantizer={"method": "ibq", "dim": 8, "codebook_size": 64},
    )  # fmt: skip
    language = LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    )
    return EndToEnd(tokenizer, language)


@torch.no_grad()
def outcome(tuned: EndToEnd) -> tuple[float, float]:
    """L_cap and PSNR on pictures that no run saw."""
    tuned.eval()
    batch = pictures(128, 2**40)
    decoded = tuned.tokenizer.decode(tuned.tokenizer.encode(batch.images))
    return float(tuned.caption_loss(batch)), float(psnr(decoded, batch.images))


@pytest.mark.slow
def test_tuning_raises_understanding_and_reconstruction_survives_with_its_own_loss_only(tmp_path: Path) -> None:
    config = Training(
        out=str(tmp_path / "start"), stages=TABLE, run=["start", "align"], losses={"l2": 4.0}, quantizer=0.25
    )
    first = model()
    Trainer(config, batches, first).run()
    _, at_start = outcome(first)
    found = {}
    for arm in ("frozen", "caption", "both"):
        own = replace(config, out=str(tmp_path / arm), run=[arm], start=str(tmp_path / "start" / "align.safetensors"))
        tuned = model()
        Trainer(own, batches, tuned).run()
        found[arm] = outcome(tuned)
    # Frozen codes hold the greys, and little room is left for a faint tint.
    frozen, frozen_psnr = found["frozen"]
    assert frozen_psnr == pytest.approx(at_start)
    assert found["caption"][0] < frozen - 0.3 and found["caption"][1] < at_start - 5
    assert found["both"][0] < frozen - 0.3 and found["both"][1] > at_start - 4
