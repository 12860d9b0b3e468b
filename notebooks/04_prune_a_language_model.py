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
# # 4. Prune a vision-language model
#
# How many questions does a vision-language model still answer when it sees only some of its visual tokens, and which
# method chooses them best?

# %%
import os
import tempfile
from functools import lru_cache
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from transformers import logging

from vistok.data.scenes import render
from vistok.lvlm import prune
from vistok.lvlm.load import load_lvlm
from vistok.lvlm.pruning_methods import find_methods
from vistok.lvlm.pruning_runs import Asking
from vistok.lvlm.pruning_table import compare
from vistok.lvlm.scene_questions import patch_cover, scene_picture, scene_questions, scene_side
from vistok.lvlm.sink_pruning import sink_report

plt.style.use("vistok.report.figures")
logging.disable_progress_bar()
torch.set_num_threads(1)  # models this small lose time to a second thread
FAST = os.environ.get("VISTOK_FAST") == "1"  # fewer questions and budgets

# %% [markdown]
# `micro_lvlm` ships with the package and answers questions about rendered scenes. Every method is asked the same
# ones; the four baselines (random, uniform, pool, downsample) always take part.

# %%
model, processor = load_lvlm("micro_lvlm")
questions = scene_questions("test", 28 if FAST else 42)  # as many of each of 14 kinds
budgets = [0.25] if FAST else [0.5, 0.25, 0.1]
before_the_decoder = ["k_center", "divprune", "sweep", "todre", "tome", "fastervlm", "visionzip", "prumerge"]
by_the_instruction = ["cdpruner", "explain_micro"]
between_layers = ["fastv", "dart", "pyramiddrop", "sparsevlm", "transprune_relative"]
methods = find_methods([*before_the_decoder, *by_the_instruction, *between_layers])
answers = tempfile.TemporaryDirectory()
read = lru_cache(scene_picture(scene_side(processor)))
asking = Asking("micro_lvlm", model, processor, questions, read, Path(answers.name), batch=56, max_new_tokens=2)
rows = compare(asking, methods, budgets)

# %%
accuracy = {(row.method, row.budget): 100 * row.score.accuracy for row in rows if row.score is not None}
names = sorted((method.name for method in methods), key=lambda name: accuracy[name, 0.25])
figure, ax = plt.subplots(figsize=(8, 6.5))
ax.axvline(accuracy["unpruned", 1.0], color="#444444", linewidth=1, label=f"all {rows[0].visual_tokens:.0f} tokens")
looks = {0.5: ("#0072B2", 12), 0.25: ("#E69F00", 9), 0.1: ("#D55E00", 6)}  # color, size
for budget in budgets:
    color, size = looks[budget]
    found = [accuracy.get((name, budget), np.nan) for name in names]
    ax.plot(found, names, "o", color=color, markersize=size, label=f"{budget:.0%} of them")
    ax.axvline(accuracy["random", budget], color=color, linewidth=1, linestyle=":")
ax.legend(loc="upper left")
ax.set_xlabel(
    f"of {len(questions)} questions answered right (%); dotted: random tokens; no dot: out of reach between layers"
)
plt.show()

# %% [markdown]
# With so few questions an interval is wide. `vistok compare pruners` asks a thousand under every preset; that table
# is in the card of the model.

# %%
for row in rows:
    if row.score is not None and row.budget in (1.0, 0.25):
        low, high = row.score.interval
        tokens = f"{row.visual_tokens:5.1f} tokens a layer, {row.flops_share:4.0%} of the FLOPs"
        print(f"{row.method:20} {row.score.accuracy:4.0%} ({low:.0%} to {high:.0%})  {tokens}  {row.verdict}")

# %% [markdown]
# Which tokens stay? Here is one question under eight methods, with the patches that were dropped faded out.

# %%
question = next(each for each in questions if each.kind == "color")
picture = read(question.picture)
content = [{"type": "image"}, {"type": "text", "text": question.text}]
prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
inputs = processor(text=prompt, images=picture, return_tensors="pt")
visual = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0]
side = int(len(visual) ** 0.5)

# %%
figure, axes = plt.subplots(2, 4, figsize=(11, 6))
kept, by_name = {}, {method.name: method for method in methods}
chosen = ["random", "k_center", "divprune", "sweep", "todre", "fastervlm", *by_the_instruction]
for ax, name in zip(axes.flat, chosen, strict=True):
    (pruner,) = by_name[name].build({}).pruners
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(), prune(model, pruner, budget=0.1, generator=generator) as pruning:
        word = processor.decode(model.generate(**inputs, max_new_tokens=1)[0, -1:])
        kept[name] = torch.isin(visual, pruning.source)
    dropped = np.kron(~kept[name].reshape(side, side).numpy(), np.ones((picture.width // side,) * 2))
    ax.imshow(picture)
    ax.imshow(np.ones((*dropped.shape, 3)), alpha=0.75 * dropped)
    ax.set_title(f"{name}: {word}")
    ax.axis("off")
figure.suptitle(
    f"{question.text}   With all tokens: {question.answer}. With {int(kept['random'].sum())} of {len(visual)}:"
)
plt.show()

# %% [markdown]
# Some tokens draw attention from everywhere (sinks, arXiv:2510.22603). In large models they show nothing; whether that
# is so here decides what a pruner may do with them.


# %%
def shows_a_thing(seed):
    return torch.from_numpy(patch_cover(render(seed, 96).masks, (12, 12)).max(0) >= 0.15)


sinks = sink_report(
    *(model, processor, scene_questions("test", 14), scene_picture(96)),
    pruners=["random", "todre"],
    budget=0.25,
    shown=shows_a_thing,
)
print(f"{sinks.share:.1%} of the visual tokens are sinks")
print(f"{sinks.sinks_shown:.0%} of these show a thing, {sinks.shown:.0%} of all tokens")
for name, left in sinks.pruners.items():
    print(f"{name:8} leaves {left.kept:.0%} of all tokens and {left.kept_sinks:.0%} of the sinks")
figure, ax = plt.subplots(figsize=(6, 2.6))
ax.bar(range(len(sinks.by_layer)), [100 * share for share in sinks.by_layer])
ax.set(xlabel="layer", ylabel="sinks (% of tokens)")
plt.show()

# %%
assert accuracy["unpruned", 1.0] > 90
for budget in set(budgets) - {0.5}:
    by_content = [accuracy[name, budget] for name in ("k_center", "sweep", "todre", "cdpruner")]
    assert sum(by_content) / len(by_content) > accuracy["random", budget] + 5
assert all(abs(row.visual_tokens - 36) < 1 for row in rows if row.budget == 0.25)
assert {row.method for row in rows if row.refused} <= set(between_layers)
assert all(int(places.sum()) == 14 for places in kept.values())
assert sinks.sinks_shown > sinks.shown and sinks.pruners["todre"].kept_sinks > sinks.pruners["random"].kept_sinks
