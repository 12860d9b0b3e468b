"""A vision-language model with perception tokens: the base, new rows and low-rank matrices, from a folder of deltas.

rows.safetensors (`row_files`), adapter.safetensors (`low_rank_files`), config.json: {"base": what `load_lvlm` takes,
"family": name of the family of the spans, "chain": whether spans come before the answer}.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from vistok.lvlm.load import load_lvlm
from vistok.lvlm.low_rank_files import merge_low_rank
from vistok.lvlm.new_rows import Attachment
from vistok.lvlm.row_files import merge_rows
from vistok.weights import locate

ROWS, ADAPTER, SETTINGS = "rows.safetensors", "adapter.safetensors", "config.json"
EMBEDDED = "aurora_micro"


class PerceptionModel(NamedTuple):
    """Model in evaluation mode, its processor, what was attached, and the settings of the folder."""

    model: Any
    processor: Any
    attachment: Attachment
    settings: dict[str, Any]


def load_perception(name: str | Path = EMBEDDED, *, device: str = "cpu") -> PerceptionModel:
    """Base model, then rows and matrices of a folder, or of the embedded "aurora_micro".

    Raises: FileNotFoundError naming the folder or file that lacks; ValueError as `merge_rows` and `merge_low_rank`.
    """
    folder = Path(name)
    if not folder.exists() and str(name) == EMBEDDED:
        folder = locate(f"embedded:{EMBEDDED}")
    if not (folder / SETTINGS).is_file():
        raise FileNotFoundError(
            f"{name}: expected {EMBEDDED} or a folder with {SETTINGS}, {ROWS} and {ADAPTER}, as `vistok train aurora` "
            "writes it to OUT/model"
        )
    settings: dict[str, Any] = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    model, processor = load_lvlm(settings["base"])
    attachment = merge_rows(folder / ROWS, processor.tokenizer, model)
    if (folder / ADAPTER).is_file():
        merge_low_rank(folder / ADAPTER, model)
    return PerceptionModel(model.to(device).eval(), processor, attachment, settings)
