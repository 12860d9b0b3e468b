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
# # 8. From a store to a training loop
#
# Can a model train on stored tokens alone, be killed in the middle, and go on as if nothing had happened?

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from PIL import Image

import vistok
from vistok.data.batching import PackedBatches
from vistok.data.collate import packed, padded
from vistok.data.encode import encode_folder
from vistok.data.mixed_stream import MixedStream
from vistok.data.scenes import render, seeds_of
from vistok.data.store import TokenStore
from vistok.lvlm.tiny_llama import TinySettings, untrained_llama

plt.style.use("vistok.report.figures")
FAST = os.environ.get("VISTOK_FAST") == "1"  # fewer pictures and steps
torch.set_num_threads(1)  # a model this small gains nothing from a second one
folder = tempfile.TemporaryDirectory()
root = Path(folder.name)

# %% [markdown]
# Two folders of rendered scenes, small and large, become two token stores. From here on no picture is opened again.

# %%
tokenizer = vistok.tokenizer("ett_nano", pretrained=True).eval()  # 1024 codes, 12x12 pixels each
stores = []
for name, side in (("small", 72), ("large", 96)):
    (root / name).mkdir()
    for seed in seeds_of("train")[: 32 if FAST else 96]:
        Image.fromarray(render(seed, side).image).save(root / name / f"{seed}.png")
    encode_folder(tokenizer, root / name, root / f"{name}-tokens")
    stores.append(TokenStore(root / f"{name}-tokens"))
    print(f"{name}: {len(stores[-1])} samples of {stores[-1].lengths[0]} ids")

# %% [markdown]
# The mixture draws twice as often from the large ones and fills each batch up to 768 tokens, without padding. A small
# Llama learns to say the next id.


# %%
def begin():
    torch.manual_seed(0)
    model = untrained_llama(TinySettings(width=64, layers=2, tied=True), words=1024)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    stream = MixedStream(stores, PackedBatches(768), weights=[1, 2], collate=packed(768), seed=0)
    return model, optimizer, stream


def train(model, optimizer, stream, steps):
    losses = []
    while len(losses) < steps:
        for portion in stream:
            if portion.samples < 8:
                continue  # what is left at the end of an epoch
            ids, starts = portion.tokens["values"], portion.tokens["cu_seqlens"].long()
            places = torch.arange(len(ids)) - starts[:-1].repeat_interleave(starts.diff())
            labels = ids.masked_fill(places == 0, -100)  # nothing says the first id of a picture
            loss = model(input_ids=ids[None], position_ids=places[None], labels=labels[None]).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if len(losses) == steps:
                break
    return losses


# %% [markdown]
# One run goes through. Another is killed on the way; all that it leaves is a file with the states of model, optimizer
# and stream, from which new objects go on.

# %%
steps, killed = (30, 12) if FAST else (90, 40)
whole = train(*begin(), steps)

# %%
model, optimizer, stream = begin()
before = train(model, optimizer, stream, killed)
parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "stream": stream.state_dict()}
torch.save(parts, root / "state.pt")
del model, optimizer, stream

# %%
model, optimizer, stream = begin()
state = torch.load(root / "state.pt", weights_only=True)
for name, part in {"model": model, "optimizer": optimizer, "stream": stream}.items():
    part.load_state_dict(state[name])
after = train(model, optimizer, stream, steps - killed)

# %%
figure, ax = plt.subplots()
ax.plot(range(1, steps + 1), whole, color="#BBBBBB", linewidth=7, label="never stopped")
ax.plot(range(1, killed + 1), before, label="killed here")
ax.plot(range(killed + 1, steps + 1), after, label="gone on from the file")
ax.axvline(killed + 0.5, color="#444444", linewidth=1, linestyle=":")
ax.legend()
ax.set(xlabel="step", ylabel="loss of the next id (nats)")
plt.show()

# %% [markdown]
# Several processes share the same global batches: each takes its part, and together they see what one alone would
# see.

# %%
settings = {"batching": PackedBatches(768), "weights": [1, 2], "seed": 0, "collate": packed(768)}
one = next(iter(MixedStream(stores, **settings)))
shared = [next(iter(MixedStream(stores, **settings, rank=rank, world=2))) for rank in (0, 1)]
for rank, portion in enumerate(shared):
    print(f"rank {rank}: {len(portion.draws)} of {portion.samples} samples")

# %% [markdown]
# For a model that wants padding, one store gives padded batches, in epochs that stop and go on likewise.

# %%
epochs = stores[0].iter(batch=10, collate=padded(pad_id=0), shuffle=True, seed=0)
sizes = [tuple(batch["ids"].shape) for batch in epochs]
print(sizes, "- next epoch:", epochs.state_dict()["epoch"])

# %%
assert before + after == whole
assert sum(whole[-5:]) < 0.95 * sum(whole[:5])
assert sorted(draw for portion in shared for draw in portion.draws) == sorted(one.draws)
assert sum(rows for rows, _ in sizes) == len(stores[0]) and epochs.state_dict()["epoch"] == 1
