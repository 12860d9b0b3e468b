"""The micro LVLM with a family that nobody trained, as a folder that `load_perception` takes."""

import json
from pathlib import Path

from vistok.lvlm import row_starts, token_families
from vistok.lvlm.load import load_lvlm
from vistok.lvlm.new_rows import attach
from vistok.lvlm.perception_model import ROWS, SETTINGS
from vistok.lvlm.point_questions import level_weights
from vistok.lvlm.row_files import export_rows

DEPTH = token_families.depth(16)


def save_untrained(folder: Path, family=DEPTH) -> Path:
    """Depth codes start between words, others at the mean."""
    folder.mkdir(parents=True)
    model, processor = load_lvlm("micro_lvlm")
    start = row_starts.mean()
    if family.name == "depth":
        start = row_starts.anchored(*level_weights(16, processor.tokenizer.get_vocab()))
    attachment = attach(processor.tokenizer, model, [family], start=start)
    export_rows(folder / ROWS, model.half(), attachment)
    (folder / SETTINGS).write_text(json.dumps({"base": "micro_lvlm", "family": family.name, "chain": True}))
    return folder
