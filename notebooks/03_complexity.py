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
# # 3. Complexity with KARL
#
# Which pictures need many tokens, and which are said in a few?

# %%
import os

import matplotlib.pyplot as plt
import torch

import vistok
from vistok.data.crops import tiles
from vistok.data.images import open_image
from vistok.data.samples import SAMPLES, sample_path
from vistok.metrics.adaptive import blurred
from vistok.metrics.complexity import calibrate, kc, kc_curve
from vistok.metrics.image_codecs import to_picture
from vistok.metrics.kinds_of_images import kinds

plt.style.use("vistok.report.figures")
FAST = os.environ.get("VISTOK_FAST") == "1"  # fewer squares

# %% [markdown]
# `karl_nano` turns a square of 96 pixels into 1 to 64 tokens: as few as the mean absolute error `eps` allows, decided
# in one pass.

# %%
model = vistok.tokenizer("karl_nano", pretrained=True).eval()
every = torch.cat([tiles(open_image(sample_path(name)), 96, [288, 202]) for name in SAMPLES])
squares = every[:: 2 if FAST else 1]
tokens = kc(model, squares, eps=0.05)
order = tokens.argsort()

# %%
shown = order[torch.linspace(0, len(order) - 1, 12).round().long()]
figure, axes = plt.subplots(1, len(shown), figsize=(13, 1.7))
for ax, number in zip(axes, shown, strict=True):
    ax.imshow(to_picture(squares[number]))
    ax.set_title(int(tokens[number]), loc="center")
    ax.axis("off")
figure.suptitle(f"tokens of {model.budget} that keep the mean absolute error within 0.05, according to the model")
plt.show()

# %% [markdown]
# A blurred picture holds less, and gets fewer tokens.

# %%
soft_tokens = kc(model, blurred(squares), eps=0.05)
figure, ax = plt.subplots(figsize=(4.5, 4.5))
ax.plot([0, model.budget], [0, model.budget], color="#888888", linewidth=1)
ax.plot(tokens, soft_tokens, "o", alpha=0.5)
ax.annotate("as many", (model.budget * 0.8, model.budget * 0.8), (-6, 6), textcoords="offset points", ha="right")
ax.set(
    xlabel="tokens of the square", ylabel="tokens of the square, blurred", xlim=(0, 66), ylim=(0, 66), aspect="equal"
)
plt.show()

# %% [markdown]
# By kind: what can be drawn from few numbers needs few tokens. Noise is no photograph and the model never saw any, so
# what it says of noise means little.

# %%
epsilons = [0.03, 0.05, 0.07, 0.1, 0.14]
curves = {name: kc_curve(model, images, epsilons).float().mean(1) for name, images in kinds(squares).items()}
figure, ax = plt.subplots()
for name, curve in curves.items():
    (line,) = ax.plot(epsilons, curve, "o-")
    ax.annotate(name, (epsilons[1], curve[1]), (7, 5), textcoords="offset points", color=line.get_color())
ax.set(
    xlabel="mean absolute error asked for (pixels in 0 to 1)", ylabel=f"tokens of {model.budget}, mean", ylim=(0, 68)
)
plt.show()

# %% [markdown]
# The error may be larger than what was asked for. `calibrate` measures by how much on your pictures; then
# `encode(calibrated=True)` asks for an error that held for 95 % of them, at the price of more tokens.

# %%
half, other = squares[::2], squares[1::2]
bounds = calibrate(model, half)
eps = next(bound for bound in sorted(bounds.values()) if bound > 0.06)
with torch.inference_mode():
    plain, careful = (model.encode(other, eps=eps, calibrated=choice) for choice in (False, True))
    missed, missed_careful = (
        float(((model.decode(each) - other).abs().mean((1, 2, 3)) > eps).float().mean()) for each in (plain, careful)
    )
for name, each, share in (("as asked", plain, missed), ("calibrated", careful, missed_careful)):
    mean = each.valid_lengths.float().mean()
    print(f"{name:10} {mean:.1f} tokens; {share:.0%} of the other squares are further off than {eps:.3f}")

# %%
assert tokens.min() < 16 and tokens.max() > 48
fewer = (soft_tokens < tokens).float().mean()
assert fewer > 0.8
assert all(curve[0] > curve[-1] for name, curve in curves.items() if name != "noise")
assert (curves["gradients"] < curves["blurred"]).all() and (curves["blurred"] < curves["photographs"])[:3].all()
assert missed_careful <= missed and careful.valid_lengths.sum() > plain.valid_lengths.sum()
