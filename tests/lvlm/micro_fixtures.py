"""An untrained micro LVLM of 36 visual tokens, as a folder and in memory."""

from pathlib import Path
from typing import Any

import torch

from vistok.lvlm.micro import MicroSettings, make_model, make_processor

SETTINGS = MicroSettings(
    side=48,
    vision_width=32,
    vision_layers=4,
    vision_heads=2,
    text_width=32,
    text_layers=8,
    text_heads=4,
    text_kv_heads=2,
)


def tiny_micro() -> tuple[Any, Any]:
    """Model whose answers differ from question to question, and processor."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = make_model(SETTINGS).eval()
        for parameter in model.parameters():
            # The initial weights are so small that it would say the same to everything.
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=1.5 / parameter.shape[-1] ** 0.5)
    return model, make_processor(SETTINGS)


def save_tiny_micro(folder: Path) -> Path:
    """The same in a folder, as `load_lvlm` takes it."""
    model, processor = tiny_micro()
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
