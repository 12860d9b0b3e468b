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
# # 1. Tokenize and look
#
# What are the tokens of a picture, and how much of the picture comes back from them alone?

# %%
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import vistok
from vistok.codecs.watermark import Watermark
from vistok.data.encode import encode_folder
from vistok.data.images import open_image, reduced
from vistok.data.rendered_text import TextRenderer
from vistok.data.samples import SAMPLES, sample_path
from vistok.data.store import TokenStore
from vistok.metrics.image_codecs import to_picture
from vistok.metrics.reconstruction import psnr
from vistok.metrics.round_trip import evaluating, round_trip
from vistok.metrics.typo_similarity import id_counts, typo_similarity, visual_embedding
from vistok.metrics.watermark import ATTACKS

plt.style.use("vistok.report.figures")
FAST = os.environ.get("VISTOK_FAST") == "1"  # fewer and smaller pictures

# %% [markdown]
# Two tokenizers ship with the package: `vq_nano` turns 8x8 pixels into one id, `kl_nano` into a few numbers.

# %%
discrete = vistok.tokenizer("vq_nano", pretrained=True)
continuous = vistok.tokenizer("kl_nano", pretrained=True)
picture = open_image(sample_path("chelsea")).crop((96, 16, 352, 272))
image = discrete.preprocess(picture)  # [3, 256, 256] in [0, 1]
with evaluating(discrete), evaluating(continuous):
    by_ids, by_numbers = round_trip(discrete, image), round_trip(continuous, image)
ids_psnr, numbers_psnr = (float(psnr(trip.image[None], image[None])) for trip in (by_ids, by_numbers))

# %%
token_map = by_ids.tokens.embeds[0, :, :3].add(1).div(2).reshape(*by_ids.tokens.spec.grid, 3)
shown = {
    f"picture, {image.shape[2]} x {image.shape[1]} pixels": picture,
    f"its {by_ids.length:,} ids, each code a colour": token_map,
    f"from the ids, {ids_psnr:.1f} dB": to_picture(by_ids.image),
    f"from {by_numbers.tokens.spec.dim} numbers a token, {numbers_psnr:.1f} dB": to_picture(by_numbers.image),
}
figure, axes = plt.subplots(1, 4, figsize=(13, 3.6))
for ax, (title, pixels) in zip(axes, shown.items(), strict=True):
    ax.imshow(pixels)
    ax.set_title(title)
    ax.axis("off")
plt.show()

# %% [markdown]
# Whatever made them, tokens are one token-tensor: ids or vectors, the cell of each, and a spec that says the rest.

# %%
print(by_ids.tokens)
print(by_numbers.tokens)
print(by_ids.tokens.spec)
print("ids of the first row of cells:", by_ids.tokens.indices[0, : by_ids.tokens.spec.grid[1]].tolist())

# %% [markdown]
# A token is local: give the cells of one corner the ids of another, and only that corner changes, with a rim around it.

# %%
rows, cols = by_ids.tokens.spec.grid
ids = by_ids.tokens.indices.reshape(rows, cols).clone()
ids[: rows // 4, : cols // 4] = ids[-(rows // 4) :, -(cols // 4) :]
edited = vistok.TokenTensor(by_ids.tokens.spec, embeds=discrete.quantizer.lookup(ids.reshape(1, -1)))
with evaluating(discrete):
    change = (discrete.decode(edited)[0] - by_ids.image).abs().amax(0)
changed = change > 1 / 255
print(f"{changed.float().mean():.1%} of the pixels changed; in the opposite quarter: {changed[128:, 128:].sum()}")

# %% [markdown]
# A folder of pictures becomes a token store: ids in two bytes each, beside the key and size of every picture.

# %%
folder = tempfile.TemporaryDirectory()
photos = Path(folder.name, "photos")
photos.mkdir()
for name in SAMPLES[: 2 if FAST else None]:
    reduced(open_image(sample_path(name)), 192 if FAST else 384).save(photos / f"{name}.png")
summary = encode_folder(discrete.eval(), photos, Path(folder.name, "store"))
store = TokenStore(Path(folder.name, "store"), tokenizer=discrete)
for row, tokens in zip(store.rows, store, strict=True):
    file = (photos / row["key"]).stat().st_size
    print(f"{row['key']}: {file:,} bytes of PNG, {tokens.num_slots:,} ids, {2 * tokens.num_slots:,} bytes")

# %% [markdown]
# What the store gives back is what the tokenizer wrote, bit for bit, and decodes without the pictures.

# %%
key = store.keys.index("astronaut.png")
again = discrete.preprocess(open_image(photos / "astronaut.png"))[None]
with evaluating(discrete):
    same = torch.equal(store[key].indices, discrete.encode(again).indices)
    from_store = discrete.decode(store[key])
print(f"same ids: {same}; {float(psnr(from_store, again)):.1f} dB from the store")

# %% [markdown]
# Ids can carry a mark: those of chosen tokens move to the nearest code whose remainder a key says (after DiscreteWM,
# arXiv:2412.13917). Who has the key finds it again in the picture, by an exact test.

# %%
mark = Watermark(discrete.quantizer.lookup(torch.arange(64_000)), key="only mine")
stranger = replace(mark, key="another")
with evaluating(discrete):
    plain = discrete.encode(image[None])
    places = mark.random_places(plain.num_slots, 256)
    marked = replace(plain, indices=mark.embed(plain.indices, places), embeds=None)
    with_mark, without = discrete.decode(marked), discrete.decode(plain)
    seen = {name: mark.detect(discrete.encode(attack(with_mark)).indices, places) for name, attack in ATTACKS.items()}
    unseen = stranger.detect(marked.indices, stranger.random_places(plain.num_slots, 256))
shots = {"unmarked": without, "marked": with_mark, "8 times the difference": 0.5 + 8 * (with_mark - without)}
figure, axes = plt.subplots(1, 3, figsize=(9, 3.2))
for ax, (title, shot) in zip(axes, shots.items(), strict=True):
    ax.imshow(shot[0].permute(1, 2, 0).clamp(0, 1))
    ax.set_title(title)
    ax.axis("off")
plt.show()
for name, found in seen.items():
    print(f"{name:10} {int(found.matches)} of 256 places match, p = {float(found.p_value):.1e}")
print(f"another key: p = {float(unseen.p_value):.2f}")

# %% [markdown]
# Text can be looked at, too (arXiv:2402.08183): a misspelt word looks much like itself, whatever its ids in a
# vocabulary.

# %%
words = ["triangle", "square", "circle", "yellow", "striped", "dotted", "small", "nearest"]
writer = TextRenderer(16)
page = writer.render(["triangle", "triagnle", "square"], height=24, width=72)
plt.figure(figsize=(4, 2.4))
plt.imshow(page.permute(0, 2, 3, 1).flatten(0, 1))
plt.axis("off")
plt.show()
known = {word: number for number, word in enumerate(words)}
by_word_id = typo_similarity(id_counts(lambda text: [known.get(text, len(known))], len(known) + 1), words)
by_sight = typo_similarity(visual_embedding(discrete, writer), words)
for kind, rows in {"ids": by_word_id, "vq_nano": by_sight}.items():
    print(kind, ", ".join(f"{row.typos} typos: {row.kept:.0%} of the similarity kept" for row in rows))

# %%
assert by_ids.length == (256 // 8) ** 2 and by_ids.tokens.indices.max() < 64_000
assert numbers_psnr > ids_psnr > 24
assert same and float(psnr(from_store, again)) > 20
assert 0 < changed.float().mean() < 0.2 and not changed[128:, 128:].any()
assert summary.images == len(store) and summary.errors == 0
assert all(bool(found.found) for found in seen.values()) and not bool(unseen.found)
assert by_sight[0].kept > by_word_id[0].kept + 0.2
