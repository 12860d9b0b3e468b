# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 9. Your own method in 20 lines
#
# How does a pruner that you write yourself compare with the built-in ones?

# %%
import os
import tempfile
from functools import lru_cache
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from transformers import logging

import vistok
from vistok.lvlm.load import load_lvlm
from vistok.lvlm.pruning_methods import find_methods
from vistok.lvlm.pruning_runs import Asking
from vistok.lvlm.pruning_table import compare
from vistok.lvlm.scene_questions import scene_picture, scene_questions, scene_side
from vistok.ops.budget import as_selection, best_slots, kept_tokens
from vistok.protocols import Pruner

plt.style.use("vistok.report.figures")
logging.disable_progress_bar()
torch.set_num_threads(1)  # models this small lose time to a second thread
FAST = os.environ.get("VISTOK_FAST") == "1"  # fewer questions

# %% [markdown]
# An idea: most of a picture is background, so tokens far from the picture's mean are worth keeping. `select` says
# which slots stay; `vistok.ops.budget` turns a budget of any kind into counts.


# %%
@vistok.register("pruner/outliers")
class Outliers:
    """Keeps the tokens farthest from the mean of their picture."""

    cannot = frozenset()
    needs = frozenset()

    @torch.no_grad()
    def select(self, tokens, budget):
        slots, counts = kept_tokens(tokens, budget)
        valid = tokens.mask[..., None]
        embeds = tokens.embeds.float().masked_fill(~valid, 0)  # padding may hold anything
        mean = embeds.sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp(min=1)
        distance = (embeds - mean).norm(dim=2).masked_fill(~tokens.mask, -1)
        ranks = distance.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return as_selection(tokens, best_slots(ranks, slots, counts), counts, budget)


# %% [markdown]
# The name now works wherever a pruner's name does: here on the same questions and budgets as the built-in ones.

# %%
model, processor = load_lvlm("micro_lvlm")
questions = scene_questions("test", 42 if FAST else 112)
budgets = [0.25, 0.1] if FAST else [0.5, 0.25, 0.1]
methods = [each for each in find_methods(["k_center", "outliers"]) if each.name not in ("pool", "downsample")]
answers = tempfile.TemporaryDirectory()
read = lru_cache(scene_picture(scene_side(processor)))
asking = Asking("micro_lvlm", model, processor, questions, read, Path(answers.name), batch=70, max_new_tokens=2)
rows = compare(asking, methods, budgets)

# %%
figure, ax = plt.subplots()
for name, up in {"random": -11, "uniform": 4, "k_center": 4, "outliers": -11}.items():
    own = [row for row in rows if row.method == name]
    x, y = [row.visual_tokens for row in own], [100 * row.score.accuracy for row in own]
    (line,) = ax.plot(x, y, "o-", linewidth=3 if name == "outliers" else 1.5)
    ax.annotate(name, (x[-1], y[-1]), (-8, up), textcoords="offset points", ha="right", color=line.get_color())
ax.axhline(100 * rows[0].score.accuracy, color="#444444", linewidth=1)
ax.annotate("all tokens", (x[0], 100 * rows[0].score.accuracy), (0, 5), textcoords="offset points", ha="right")
ax.set(
    xlabel=f"visual tokens of {rows[0].visual_tokens:.0f}",
    ylabel=f"of {len(questions)} questions right (%)",
    xlim=(0, None),
)
plt.show()

# %%
for row in rows:
    low, high = row.score.interval
    against = "" if row.against_random is None else f"{row.against_random.difference:+.0%} to random: {row.verdict}"
    right = f"{row.score.accuracy:4.0%} ({low:.0%} to {high:.0%})"
    print(f"{row.method:10} {row.visual_tokens:4.0f} tokens  {right} {against}")

# %% [markdown]
# Pruners promise more than accuracy: exact counts for any budget, slots in their order, and for a padded batch what
# each item alone would give. `tests/test_contract_pruners.py` checks this and more for every method of the package.

# %%
mine = vistok.pruner("outliers")
draw = torch.Generator().manual_seed(0)
lengths = torch.tensor([12, 5, 1])
batch = vistok.TokenTensor(vistok.TokenSpec("toy", dim=8), torch.randn(3, 12, 8, generator=draw), lengths=lengths)
alone = [vistok.TokenTensor(batch.spec, batch.embeds[i : i + 1, :n]) for i, n in enumerate(lengths.tolist())]
kept, single = mine.select(batch, 4), [mine.select(one, 4).index[0].tolist() for one in alone]
together = [row[:n].tolist() for row, n in zip(kept.index, kept.lengths, strict=True)]
print("kept of each item:", together)

# %%
right = {(row.method, row.budget): row.score.accuracy for row in rows}
assert isinstance(mine, Pruner) and "outliers" in vistok.list_pruners()
assert together == single == [sorted(slots) for slots in single] and kept.lengths.tolist() == [4, 4, 1]
assert mine.select(alone[0], 1.0).index.tolist() == [list(range(12))]
assert all(right["outliers", budget] > right["random", budget] for budget in budgets if budget < 0.5)
