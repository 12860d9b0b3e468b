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
# # 2. Discrete, continuous, adaptive
#
# How good is a picture at how many bits, when it travels as ids, as numbers, as an adaptive count of tokens, or as JPEG
# and WebP?

# %%
import os

import matplotlib.pyplot as plt
import pyarrow as pa
import torch

import vistok
from vistok.data.crops import tiles
from vistok.data.equal_windows import DigitModel, decode_windows, encode_windows
from vistok.data.images import open_image
from vistok.data.samples import sample_path
from vistok.data.scenes import render, seeds_of
from vistok.metrics.image_codecs import jpeg_at, webp_at
from vistok.metrics.reconstruction import psnr
from vistok.metrics.scene_codebook import scene_codebook
from vistok.metrics.token_bits import mask_bits, rounded, slot_mask, token_bits

plt.style.use("vistok.report.figures")
FAST = os.environ.get("VISTOK_FAST") == "1"  # fewer and smaller pictures
side = 192 if FAST else 288
names = ("coffee", "rocket") if FAST else ("astronaut", "chelsea", "coffee", "rocket")
pictures = torch.cat([tiles(open_image(sample_path(name)), side, [side])[:1] for name in names])  # [B, 3, side, side]
pixels = len(pictures) * side**2

# %% [markdown]
# An id costs log2 of its codebook's size. Numbers are rounded to a step and cost their entropy, channel by channel:
# coarser steps, fewer bits.

# %%
discrete, continuous, adaptive = (
    vistok.tokenizer(name, pretrained=True).eval() for name in ("vq_nano", "kl_nano", "karl_nano")
)
curves = {"vq_nano, ids": [], "kl_nano, numbers": []}  # of each: pairs of bits per pixel and PSNR
with torch.inference_mode():
    ids = discrete.encode(pictures)
    from_ids = discrete.decode(ids)
    bits = float(token_bits(ids, ids.num_slots).sum())
    curves["vq_nano, ids"].append((bits / pixels, float(psnr(from_ids, pictures))))
    numbers = continuous.encode(pictures)
    for step in (2.0, 1.0, 0.5, 0.25):
        coarse = rounded(numbers, step)
        from_numbers = continuous.decode(coarse.tokens)
        curves["kl_nano, numbers"].append((coarse.bits / pixels, float(psnr(from_numbers, pictures))))

# %% [markdown]
# `karl_nano` takes squares of 96 pixels and gives each as few tokens as an error allows. Which slots they sit in costs
# bits, too.

# %%
cells = side // 96
squares = pictures.unfold(2, 96, 96).unfold(3, 96, 96).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 96, 96)
curves["karl_nano, adaptive"], counts = [], []
with torch.inference_mode():
    for eps in (0.14, 0.1, 0.07, 0.05, 0.03):
        coarse = rounded(adaptive.encode(squares, eps=eps), 0.2)
        bits = coarse.bits + float(mask_bits(slot_mask(coarse.tokens, adaptive.budget)).sum())
        decoded = adaptive.decode(coarse.tokens).reshape(-1, cells, cells, 3, 96, 96)
        joined = decoded.permute(0, 3, 1, 4, 2, 5).reshape(pictures.shape)
        curves["karl_nano, adaptive"].append((bits / pixels, float(psnr(joined, pictures))))
        counts.append(float(coarse.tokens.valid_lengths.float().mean()))

# %% [markdown]
# JPEG and WebP get the same pictures, at the best quality that fits into a number of bytes. Of a JPEG only what follows
# its tables counts.

# %%
for name, codec in {"JPEG": jpeg_at, "WebP": webp_at}.items():
    curves[name] = []
    for rate in (0.25, 0.5, 0.75, 1.0):
        found = [codec(picture, int(rate * side**2 / 8)) for picture in pictures]
        if all(result.fits for result in found):
            mean = sum(result.psnr for result in found) / len(found)
            curves[name].append((8 * sum(result.bytes for result in found) / pixels, mean))

# %%
beside = {"vq_nano, ids": (-8, -3, "right"), "karl_nano, adaptive": (0, 9, "center")}  # where lines leave room
figure, ax = plt.subplots()
for name, points in curves.items():
    (line,) = ax.plot(*zip(*points, strict=True), "o--" if name in ("JPEG", "WebP") else "o-")
    right, up, align = beside.get(name, (8, -3, "left"))
    ax.annotate(name, points[-1], (right, up), textcoords="offset points", ha=align, color=line.get_color())
ax.set(xlabel="bits per pixel", ylabel="PSNR (dB), mean of the pictures", xlim=(0, 1.35))
plt.show()

# %% [markdown]
# Image codecs spend their bits where a picture needs them; so does the adaptive tokenizer, from one square to the next.
# A grid of ids or numbers cannot.

# %%
for name, points in curves.items():
    print(f"{name:20}", "  ".join(f"{rate:.2f}: {quality:.1f} dB" for rate, quality in points))
print("tokens per square: ", "  ".join(f"{count:.1f} of {adaptive.budget}" for count in counts))

# %% [markdown]
# Ids need fewer bits than they have: arithmetic coding under a small model packs them into windows of equal bits, each
# of which decodes alone (arXiv:2404.03626).


# %%
def scene_ids(split, count):
    images = [torch.from_numpy(render(seed, 160).image.copy()) for seed in seeds_of(split)[:count]]
    with torch.inference_mode():
        return [discrete.encode(image.permute(2, 0, 1).float()[None] / 255).indices[0] for image in images]


coder = DigitModel.fit(scene_ids("train", 30 if FAST else 60), discrete.quantizer.levels)
held_out = scene_ids("test", 10)
raw = sum(2 * len(row) for row in held_out)
zstd = pa.Codec("zstd", 19)
shares = {"zstd": sum(len(zstd.compress(row.numpy().astype("<u2").tobytes())) for row in held_out) / raw}
restored = True
for bits in (32, 64, 128, 256):
    windows = [encode_windows(row, coder, bits) for row in held_out]
    restored &= all(
        torch.equal(decode_windows(window, coder, bits, len(row)), row)
        for window, row in zip(windows, held_out, strict=True)
    )
    shares[f"windows of {bits} bits"] = sum(map(len, windows)) * bits / 8 / raw
figure, ax = plt.subplots(figsize=(7, 2.6))
ax.barh(list(shares), [100 * share for share in shares.values()], color="#0072B2")
ax.invert_yaxis()
ax.set(xlabel="of two bytes per id (%), ids of scenes", xlim=(0, 100))
plt.show()

# %% [markdown]
# What do codes mean? I(X;C) is what they cost, distortion the variance that they leave (arXiv:2505.17117), beside
# k-means with as many clusters; labels shuffled thing by thing tell how much of what they say of colour is chance.

# %%
meaning = scene_codebook(vistok.tokenizer("ett_nano", pretrained=True).eval(), seeds_of("test")[:60], draws=5)
for name, row in meaning.rows.items():
    for source, own in {"codes": row.codes, "k-means": row.k_means}.items():
        color = own.labels["color"]
        print(
            f"{name:7} {source:8} {own.clusters:4.0f} clusters, {own.complexity:.2f} bits, {own.distortion:.1%} left; "
            f"colour {color.plug_in:.2f} bits of which {color.shuffled:.2f} by chance"
        )

# %%
((ids_rate, ids_psnr),) = curves["vq_nano, ids"]
assert abs(ids_psnr - curves["JPEG"][0][1]) < 2 and curves["JPEG"][0][0] <= ids_rate
assert ids_psnr < curves["WebP"][0][1] and curves["WebP"][0][0] <= ids_rate
assert curves["kl_nano, numbers"] == sorted(curves["kl_nano, numbers"])
assert curves["kl_nano, numbers"][-1][1] > ids_psnr
assert counts == sorted(counts) and curves["karl_nano, adaptive"] == sorted(curves["karl_nano, adaptive"])
assert curves["karl_nano, adaptive"][0][0] < ids_rate / 2
assert restored and shares["windows of 128 bits"] < min(1, shares["windows of 32 bits"])
assert all(row.k_means.distortion < row.codes.distortion for row in meaning.rows.values())
assert all(row.codes.labels["color"].above_shuffled > 0 for row in meaning.rows.values())
