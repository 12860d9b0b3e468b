"""Whether a model uses the perception tokens it says: its spans with other codes in them, same length, same prompt.

The token replacement test of "Ablate-to-Validate" (Zhang, Bigverdi, Krishna). n ids, N codes of all spans.
"""

import torch
from torch import Tensor

from vistok.lvlm.vocabulary import VocabMap

MODES = ("identity", "oracle", "random", "first_repeat", "constant")


def replace_span(
    ids: Tensor, family: VocabMap, mode: str, generator: torch.Generator | None = None, oracle: Tensor | None = None
) -> Tensor:
    """ids [n] with the codes of every whole span replaced; markers and text stay, [n] int64.

    mode: "identity" leaves them, "oracle" takes the codes `oracle` [N] in order, "random" draws each alike from all,
    "first_repeat" repeats the first code of its span, "constant" writes the middle code of the family everywhere.
    Raises: ValueError for another mode, or where oracle codes or a generator lack or do not fit.
    """
    if mode not in MODES:
        raise ValueError(f"replace_span: expected a mode among {', '.join(MODES)}, got {mode!r}")
    if mode == "random" and generator is None:
        raise ValueError("replace_span: expected a generator for mode 'random', got none")
    if ids.ndim != 1:
        raise ValueError(f"replace_span: expected ids [n] of one sequence, got {list(ids.shape)}")
    made = ids.clone()
    spans = family.find_spans(ids)
    code = torch.zeros(len(ids), dtype=torch.bool)
    for span in spans:
        code[span] = family.is_code(ids[span]).cpu()
    total = int(code.sum())
    if mode == "oracle" and (oracle is None or oracle.shape != (total,)):
        given = "none" if oracle is None else f"{list(oracle.shape)}"
        raise ValueError(f"replace_span: expected oracle codes [{total}] for {len(spans)} spans, got {given}")
    if mode == "oracle" and oracle is not None:
        made[code] = family.to_ids(oracle).to(made)
    elif mode == "random":
        drawn = torch.randint(len(family), (total,), generator=generator)
        made[code] = family.to_ids(drawn).to(made)
    elif mode == "constant":
        made[code] = family.codes[len(family) // 2]
    elif mode == "first_repeat":
        for span in spans:
            inside = code.nonzero().flatten()
            inside = inside[(inside >= span.start) & (inside < span.stop)]
            made[inside] = ids[inside[0]] if len(inside) else 0
    return made
