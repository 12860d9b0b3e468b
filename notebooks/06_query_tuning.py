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
# # 6. Visual query tuning, probes and LoRA
#
# How much accuracy does each way to tune a vision transformer buy, and how much memory does a training step cost?

# %%
import copy
import os

import matplotlib.pyplot as plt
import peft
import torch

import vistok
from vistok.bench._saved_bytes import saved_bytes
from vistok.layers.feature_head import FeatureHead
from vistok.readouts.vqt_classifier import VQTClassifier
from vistok.train.captured_images import CapturedImages
from vistok.train.classifier_fit import Recipe, fit, predicted
from vistok.train.labelled_images import classes_of, labelled_images, source_of
from vistok.train.standardized_head import standardized

plt.style.use("vistok.report.figures")
torch.set_num_threads(1)  # models this small lose time to a second thread
FAST = os.environ.get("VISTOK_FAST") == "1"  # fewer images

# %% [markdown]
# `vit_nano` is a vision transformer of 0.7 million parameters that saw no label. The task: name the colour of the one
# thing in a rendered scene.

# %%
backbone = vistok.tokenizer("vit_nano", pretrained=True)
task, side = "color", 64
seen = labelled_images(source_of(task), "train", 400 if FAST else 800, side)
unseen = labelled_images(source_of(task), "test", 400 if FAST else 800, side)
labels, test_labels = seen.labels[task], unseen.labels[task]
classes = len(classes_of(task))
mean, spread = (torch.tensor(values).view(3, 1, 1) for values in (backbone.mean, backbone.std))
images, test_images = (seen.images - mean) / spread, (unseen.images - mean) / spread
test_rows = torch.arange(len(test_labels))
results = {}  # of each way: accuracy and bytes that one image's step saves for backward


def report(name, logits_of, step, model):
    known = [*model.parameters(), *model.buffers(), *backbone.net.parameters(), images]
    right = predicted(logits_of, test_rows) == test_labels
    results[name] = float(right.float().mean()), saved_bytes(step, known) / 16
    print(f"{name}: {results[name][0]:.1%} right, {results[name][1] / 1024:.1f} KiB saved per image")


# %% [markdown]
# The backbone stays as it is for probes and for query tuning, so it runs once per image; what queries will look at is
# kept. VQT adds T queries to every block, which read the keys and values that are there and change nothing else.

# %%
torch.manual_seed(0)
recipe = Recipe(learning_rate=0.06, weight_decay=0.01, epochs=15, warm_epochs=2)
once = CapturedImages(vistok.readout("vqt", vit=backbone.net).eval(), images)
once_test = CapturedImages(vistok.readout("vqt", vit=backbone.net).eval(), test_images)

# %%
probe = FeatureHead(backbone.net.num_features, classes)
features, test_features = (torch.nn.functional.normalize(each.all.pooled, dim=1) for each in (once, once_test))
with standardized(probe, features):
    fit(probe, lambda rows: probe(features[rows]), labels, recipe, seed=0)
report("linear probe", lambda rows: probe(test_features[rows]), lambda: probe(features[:16].clone()), probe)

# %%
for count in (1,) if FAST else (1, 4):
    model = VQTClassifier(vistok.readout("vqt", vit=backbone.net, num_tokens=count), classes).eval()
    with torch.no_grad():
        start = model.vqt.read(once.all).features
    with standardized(model.head, start):
        fit(model.train(), lambda rows, model=model: model.read(once.rows(rows)), labels, recipe, seed=0)
    model.eval()
    report(
        f"VQT, {count} per block",
        lambda rows, model=model: model.read(once_test.rows(rows)),
        lambda model=model: model.train()(images[:16]),
        model,
    )

# %% [markdown]
# LoRA changes the backbone itself, so every step runs it, and keeps what each block computed.

# %%
tuned = copy.deepcopy(backbone.net)
tuned.reset_classifier(classes)
peft.inject_adapter_in_model(peft.LoraConfig(r=8, lora_alpha=8, target_modules=["qkv"]), tuned)
tuned.head.requires_grad_(True)
rate = Recipe(learning_rate=0.04, weight_decay=0.0, batch=32, epochs=5, warm_epochs=1)
fit(tuned.train(), lambda rows: tuned(images[rows]), labels, rate, seed=0)
tuned.eval()
report("LoRA, rank 8", lambda rows: tuned(test_images[rows]), lambda: tuned(images[:16]), tuned)

# %%
figure, ax = plt.subplots()
for name, (accuracy, saved) in results.items():
    ax.plot(saved / 1024, 100 * accuracy, "o", markersize=9)
    ax.annotate(name, (saved / 1024, 100 * accuracy), (0, 10), textcoords="offset points", ha="center")
ax.set(xscale="log", xlabel="kept for backward (KiB per image)", ylabel=f"{task} named right (%)")
ax.margins(0.2)
plt.show()

# %%
chance = 1 / classes
(probe_right, probe_saved), (lora_right, lora_saved) = results["linear probe"], results["LoRA, rank 8"]
vqt_right, vqt_saved = results["VQT, 1 per block"]
print(f"LoRA keeps {lora_saved / vqt_saved:.0f} times what VQT keeps, VQT {vqt_saved / probe_saved:.0f} times a probe")

# %%
assert probe_saved < vqt_saved < lora_saved / 4
assert min(probe_right, vqt_right) > 2 * chance and lora_right > max(probe_right, vqt_right)
assert vqt_right > probe_right - 0.02
