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
from vistok.data.window_column import WindowColumn, add_windows
from vistok.layers.digit_codes import digit_losses
from vistok.layers.joint_diffusion import JointDenoiser, noised
from vistok.layers.multi_token_heads import MultiTokenHeads, multi_token_loss, shifted
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

# %% [markdown]
# A store can also keep its ids arithmetic-coded in windows of equal bits, as a column that decodes alone.

# %%
copy = root / "windows"
coded = add_windows(root / "small-tokens", copy, bits=128)
windows = WindowColumn(TokenStore(copy))
print(
    f"{coded.ids:,} ids: {coded.windows:,} windows of {coded.window_bytes:,} bytes, a model of {coded.model_bytes:,};"
)
print(f"{coded.zstd_bytes:,} by zstd, {coded.raw_bytes:,} raw")

# %% [markdown]
# Two losses beside that of the next id: heads for the ids behind it, which fade as training goes on (arXiv:2506.07833),
# and one net that denoises masked ids and noised vectors together (arXiv:2510.03206). `vistok train multi_token` and
# `joint_tokens` train with them; here they are on one batch.

# %%
digit_sizes = (8, 8, 8, 5, 5, 5)  # digits of the ids of vq_nano
torch.manual_seed(0)
digits = torch.stack([torch.randint(size, (4, 16)) for size in digit_sizes], -1)
hidden, unembed = torch.randn(4, 16, 32), torch.nn.Linear(32, sum(digit_sizes))
heads = MultiTokenHeads(32, 4, ahead=3)
losses = [
    digit_losses(unembed(states), shifted(digits, place + 1), digit_sizes)[:, : -place - 1].mean()
    for place, states in enumerate([hidden, *heads(hidden)])
]
faded = {done: float(multi_token_loss(losses, beta=0.3, done=done).detach()) for done in (0.0, 0.5, 1.0)}
print("loss with the ids behind:", "  ".join(f"{done:.0%} of the run {loss:.2f}" for done, loss in faded.items()))
net = JointDenoiser(digit_sizes, channels=6, tokens=16, width=32, layers=1, heads=4)
masked, noise, vectors = torch.full((4,), 0.5), torch.full((4,), 0.3), torch.randn(4, 16, 6)
context, seen = torch.randn(4, 4, 32), noised(digits, vectors, masked, noise)
joint = net.loss(context, digits, vectors, masked, noise, seen)
print(f"joint: ids {float(joint.discrete.detach()):.2f} nats a token, vectors {float(joint.continuous.detach()):.2f}")

# %%
assert before + after == whole
assert sum(whole[-5:]) < 0.95 * sum(whole[:5])
assert sorted(draw for portion in shared for draw in portion.draws) == sorted(one.draws)
assert sum(rows for rows, _ in sizes) == len(stores[0]) and epochs.state_dict()["epoch"] == 1
assert torch.equal(windows.ids(0), stores[0][0].indices[0])
assert faded[0.0] > faded[0.5] > faded[1.0] and abs(faded[1.0] - float(losses[0].detach())) < 1e-5
assert 5 < float(joint.discrete.detach()) < 25  # ln 64,000 = 11.07 for a net that knows nothing
