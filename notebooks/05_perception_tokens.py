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
# # 5. Perception tokens as steps of reasoning
#
# When a model writes down how near things are before it answers, does it answer from what it wrote?

# %%
import os

import matplotlib.pyplot as plt
import torch
from transformers import logging

import vistok
from vistok.data.scenes import render, seeds_of
from vistok.lvlm.perception_model import load_perception
from vistok.lvlm.point_questions import PointTexts, point_questions
from vistok.lvlm.replacement_test import OWN, replacement_test
from vistok.metrics.accuracy import accuracy
from vistok.metrics.depth import depth_trip
from vistok.protocols import Span

plt.style.use("vistok.report.figures")
logging.disable_progress_bar()
torch.set_num_threads(1)  # models this small lose time to a second thread
FAST = os.environ.get("VISTOK_FAST") == "1"  # fewer questions

# %% [markdown]
# `aurora_micro` is asked which of two or three things is nearest or farthest. It writes a depth token for each thing,
# then a name. The same model is then made to write other tokens: the true ones (oracle), random ones, always the same
# one.

# %%
host = load_perception("aurora_micro")
questions = point_questions(PointTexts(host.attachment.families[0]), 24 if FAST else 96)
said = replacement_test(host, questions, ["oracle", "random", "constant"])
print(questions[0].text, "->", said[OWN][0].text)

# %% [markdown]
# A program can read the tokens, too: it compares them and names the thing. That tells what is written apart from what
# the model makes of it.

# %%
right = {name: [one.answer == q.answer for one, q in zip(rows, questions, strict=True)] for name, rows in said.items()}
right["program"] = [q.read(one.codes) == q.answer for one, q in zip(said[OWN], questions, strict=True)]
scores = {name: accuracy(hits) for name, hits in right.items()}
guess = sum(1 / question.points for question in questions) / len(questions)
labels = {
    OWN: "its own tokens",
    "oracle": "true tokens in their place",
    "random": "random tokens",
    "constant": "the same token always",
    "program": "its own tokens, read by a program",
}
figure, ax = plt.subplots(figsize=(8, 3.6))
for row, name in enumerate(labels):
    score, color = scores[name], "#009E73" if name == "program" else "#0072B2"
    ax.barh(row, 100 * score.accuracy, color=color)
    ax.plot([100 * end for end in score.interval], [row, row], color="#222222", linewidth=1.5)
ax.axvline(100 * guess, color="#444444", linestyle=":")
ax.annotate("a guess", (100 * guess, -0.62), (4, 0), textcoords="offset points", va="center")
ax.set_yticks(range(len(labels)), labels.values())
ax.set(xlabel=f"of {len(questions)} questions right (%), with 95 % intervals", xlim=(0, 100), ylim=(4.6, -0.85))
plt.show()

# %% [markdown]
# If true tokens help no more than random ones, the model does not read what it writes, and better tokens would not
# help it either. If they do, its own tokens are worth what they get right.

# %%
reads = scores["oracle"].accuracy - scores["random"].accuracy > 0.1
for name, score in scores.items():
    low, high = score.interval
    print(f"{labels[name]:34} {score.accuracy:4.0%} ({low:.0%} to {high:.0%})")
print(f"a guess {guess:.0%}; true against random tokens: the model {'reads' if reads else 'does not read'} its tokens")

# %% [markdown]
# A token can also stand for a place in a map. `depth_nano` writes the depth of a whole scene as 100 words and reads
# it back: outlines go soft, and what is near stays near.

# %%
codec = vistok.codec("depth_nano", pretrained=True)
scenes = [render(seed, codec.image_size) for seed in seeds_of("test")[:4]]
metres = torch.stack([torch.from_numpy(scene.depth) for scene in scenes])
trip = depth_trip(codec, metres)
text = codec.to_text(codec.encode(metres[:1]))[0]
print(text[:60], "...", text[-30:])

# %%
figure, axes = plt.subplots(3, 4, figsize=(8, 6))
rows = {"scene": [s.image for s in scenes], "depth": trip.target[:, 0], "from 100 tokens": trip.restored[:, 0]}
for row, (name, pictures) in zip(axes, rows.items(), strict=True):
    row[0].set_ylabel(name)
    for ax, picture, scene in zip(row, pictures, scenes, strict=True):
        drawn = ax.imshow(picture, cmap="cividis_r", vmin=scene.depth.min(), vmax=scene.depth.max())
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
figure.colorbar(drawn, ax=axes[1:, :], label="metres, of the last scene")
plt.show()
error = float(((trip.restored - trip.target).abs() / trip.target).mean())
print(f"mean relative error of depth {error:.1%}")

# %%
assert accuracy([q.read(q.codes) == q.answer for q in questions]).accuracy == 1.0
assert scores["program"].accuracy > guess + 0.1 and scores["program"].accuracy > scores["random"].accuracy + 0.1
assert reads and scores[OWN].accuracy > guess + 0.1
assert isinstance(codec.parse(text)[0], Span) and error < 0.1
