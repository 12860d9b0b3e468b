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
# # 7. Tune a tokenizer through a language model
#
# What does a tokenizer turn into when the loss of a language model may change it, and what keeps its pictures
# together?

# %%
import os
import tempfile

import matplotlib.pyplot as plt
import torch
from transformers import logging

import vistok
from vistok.config import load_config
from vistok.lvlm.causal_lm import load_causal_lm
from vistok.metrics.image_codecs import to_picture
from vistok.train.ett import Trainer, Training
from vistok.train.ett_model import EndToEnd, caption_gradients

plt.style.use("vistok.report.figures")
logging.disable_progress_bar()
FAST = os.environ.get("VISTOK_FAST") == "1"  # fewer steps

# %% [markdown]
# ETT joins a tokenizer and a language model by a small projector. The recipe is a table of stages: what trains, what
# stays, which losses.

# %%
recipe = load_config("train", "ett_nano").settings
table = [{**stage, "batch": 8} for stage in recipe["stages"]]
for stage in table:
    if stage["name"] in ("alignment", "untuned", "caption_only", "semantic"):
        print(f"{stage['name']:13} trains {', '.join(stage['trained']):32} losses {stage['losses']}")
folder = tempfile.TemporaryDirectory()
common = {"stages": table, "losses": recipe["losses"], "log_every": 1, "assessed": 64, "threads": 1}

# %% [markdown]
# First the projector alone learns; then, from that state and on the same scenes, the rest in three ways. `ett_nano`
# has been tuned like this before, and so few steps show a direction, not a size: its card has the numbers of whole
# runs.

# %%
torch.manual_seed(0)
model = EndToEnd(vistok.tokenizer("ett_nano", pretrained=True), load_causal_lm("micro_lvlm"))
aligning = Trainer(Training(folder.name, run=["alignment"], steps=10 if FAST else 20, **common), model=model)
began = aligning.run()
ways = {"untuned": "tokenizer frozen", "caption_only": "language loss alone", "semantic": "with 0.25 of its own loss"}
losses, ends, tokenizers = {}, {}, {"start": model.tokenizer}
for name in ways:
    start = f"{folder.name}/alignment.safetensors"
    run = Training(f"{folder.name}/{name}", run=[name], start=start, steps=12 if FAST else 24, **common)
    trainer, losses[name] = Trainer(run), []
    ends[name] = trainer.run(lambda step, terms, name=name: losses[name].append(terms["caption"]))
    tokenizers[name] = trainer.model.tokenizer

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
for name, said in ways.items():
    left.plot(range(1, len(losses[name]) + 1), losses[name], label=said)
left.legend()
left.set(xlabel="step", ylabel="language loss (nats)")
for name, said in ways.items():
    right.plot(ends[name]["psnr"], said, "o", markersize=11)
right.axvline(began["psnr"], color="#444444", linestyle=":")
right.annotate("before", (began["psnr"], 2.3), (-5, 0), textcoords="offset points", ha="right")
right.set(xlabel="PSNR of close-ups afterwards (dB)", ylim=(-0.5, 2.5))
right.invert_yaxis()
plt.show()

# %% [markdown]
# The language loss reaches encoder and codes because the model reads vectors of the codebook, not their numbers. The
# decoder hears nothing of it, and falls behind unless the tokenizer's own loss trains it, too.

# %%
scenes = aligning.batches(aligning.stages[-1], 0)
for part in model.parts.values():
    part.requires_grad_(True)
reach = caption_gradients(model, scenes)
for part, norm in reach.items():
    print(f"{part:10} norm of the gradient {norm:.3f}")

# %%
figure, axes = plt.subplots(1, 5, figsize=(12, 3))
axes[0].imshow(to_picture(scenes.images[0]))
axes[0].set_title("scene")
for ax, (name, tokenizer) in zip(axes[1:], tokenizers.items(), strict=True):
    tokenizer.eval()
    with torch.no_grad():
        ax.imshow(to_picture(tokenizer.decode(tokenizer.encode(scenes.images[:1]))[0]))
    ax.set_title(ways.get(name, name))
for ax in axes:
    ax.axis("off")
plt.show()

# %%
assert reach["encoder"] > 0 and reach["quantizer"] > 0 and reach["decoder"] == 0
assert abs(ends["untuned"]["psnr"] - began["psnr"]) < 0.01
assert ends["caption_only"]["psnr"] < ends["semantic"]["psnr"] - 0.3 < began["psnr"]
assert all(sum(values[-4:]) < sum(values[:4]) for values in losses.values())
