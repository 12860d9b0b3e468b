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
COLORS = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.8, 0.2], [0.2, 0.2, 0.9], [0.9, 0.9, 0.2]])
FIRST_WORD = 3
WHOLE = {"tokenizer": 3e-3, "projector": 3e-3, "language": 3e-3}
TABLE: list[dict[str, Any]] = [
    {"name": "start", "trained": ["tokenizer"], "frozen": ["projector", "language"], "losses": {"vq": 1.0},
     "learning_rate": 5e-3, "steps": 200, "batch": 16},
    {"name": "align", "trained": ["projector"], "frozen": ["tokenizer", "language"], "losses": {"caption": 1.0},
     "learning_rate": 5e-3, "steps": 30, "batch": 16, "stream": 1},
    {"name": "frozen", "trained": ["projector", "language"], "frozen": ["tokenizer"], "losses": {"caption": 1.0},
     "learning_rate": {"projector": 3e-3, "language": 3e-3}, "steps": 120, "batch": 16, "stream": 2},
    {"name": "caption", "trained": ["tokenizer", "projector", "language"], "frozen": [], "losses": {"caption": 1.0},
     "learning_rate": WHOLE, "steps": 120, "batch": 16, "stream": 2},
    {"name": "both", "trained": ["tokenizer", "projector", "language"], "frozen": [],
     "losses": {"caption": 1.0, "vq": 0.25}, "learning_rate": WHOLE, "steps": 120, "batch": 16, "stream": 2},
]  # fmt: skip


def pictures(items: int, number: int) -> Batch:
    """Stripes in strong greys over everything, and in each quarter a small faint spot of colour that the words name."""
    draw = torch.Generator().manual_seed(number)
    phase = torch.rand(items, 1, 1, generator=draw) * 6.28
    rows = torch.arange(SIDE)[None, :, None] * torch.rand(items, 1, 1, generator=draw) * 1.5
    columns = torch.arange(SIDE)[None, None, :] * torch.rand(items, 1, 1, generator=draw) * 1.5
    grey = 0.5 + 0.4 * torch.sin(rows + columns + phase)
    images = grey[:, None].expand(-1, 3, -1, -1).clone()
    colors = torch.randint(len(COLORS), (items, 4), generator=draw)
    for quarter in range(4):
        top, left = quarter // 2 * 8 + 2, quarter % 2 * 8 + 2
        spot = COLORS[colors[:, quarter]][:, :, None, None]
        images[:, :, top : top + 3, left : left + 3] = spot
    ids = colors + FIRST_WORD
    return Batch(images.clamp(0, 1), ids, ids, torch.tensor([1]))


def batches(stage: Stage, number: int) -> Batch:
    return pictures(stage.batch, number)


def model() -> EndToEnd:
    torch.manual_seed(0)
    tokenizer: Any = vistok.tokenizer(
        "ett_nano", patch=PATCH, width=32, fine_width=16, encoder_blocks=1, decoder_blocks=1, fine_blocks=1,
        quantizer={"method": "ibq", "dim": 8, "codebook_size": 32},
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
    config = Training(out=str(tmp_path / "start"), stages=TABLE, run=["start", "align"], losses={"log_l2": 1.0})
    first = model()
    Trainer(config, batches, first).run()
    _, at_start = outcome(first)
    found = {}
    for arm in ("frozen", "caption", "both"):
        own = replace(config, out=str(tmp_path / arm), run=[arm], start=str(tmp_path / "start" / "align.safetensors"))
        tuned = model()
        Trainer(own, batches, tuned).run()
        found[arm] = outcome(tuned)
    print(at_start, found)
    assert found["frozen"][1] == pytest.approx(at_start)
    assert found["caption"][0] < found["frozen"][0] - 0.1 and found["both"][0] < found["frozen"][0] - 0.1
    assert found["caption"][1] < at_start - 2
    assert found["both"][1] > at_start - 0.5
