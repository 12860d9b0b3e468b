"""Cases of vistok.bench.ops that choose tokens: covering sets, transitions, attention of one row, packing."""

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from vistok.bench.timing import Candidates
from vistok.ops import attention_rows, compact, k_center, transition_stats

# B items, N tokens, D width, k picks.
COVERS = ((4, 576, 1024, 128), (1, 2304, 1024, 576), (1, 4096, 1024, 256))


def cases() -> Iterator[tuple[str, Candidates]]:
    """Yield each case and its candidates, vistok first."""
    for batch, tokens, width, picks in COVERS:
        yield f"k_center {batch} x {tokens} x {width}, k={picks}", cover_candidates(batch, tokens, width, picks)
    for dtype in (torch.float32, torch.bfloat16):
        yield f"transition_stats 2880 x 4096 {str(dtype)[6:]}", transition_candidates(2880, 4096, dtype)
    yield "attention_rows 1 query, 32 heads, 8 of keys, 4096 x 128", attention_candidates(1, 32, 8, 4096, 128)
    yield "compact 144 of 576, 32 x 1024", compact_candidates(32, 576, 144, 1024)


def cover_candidates(batch: int, tokens: int, width: int, picks: int) -> Candidates:
    """Greedy k-center in vistok and in packages. Raises: AssertionError if one covers by other distances."""
    x = torch.randn(batch, tokens, width, generator=torch.Generator().manual_seed(0))
    candidates: dict[str, Callable[[], Tensor]] = {"vistok": lambda: k_center(x, picks).indices}
    if find_spec("torch_fps"):
        fps = import_module("torch_fps").farthest_point_sampling
        every = torch.ones(batch, tokens, dtype=torch.bool)
        candidates["torch-fps"] = lambda: fps(x, every, picks, random_start=False)
    if find_spec("torch_quickfps"):
        quick = import_module("torch_quickfps")
        candidates["torch-quickfps"] = lambda: quick.sample_idx(x, picks, start_idx=0)
    if find_spec("fpsample"):
        sample = import_module("fpsample").fps_sampling
        candidates["fpsample"] = lambda: _each(x, lambda one: sample(one, picks, start_idx=0))
    if find_spec("k_center"):
        estimator = import_module("k_center").KCenter(n_clusters=picks, random_state=None)
        candidates["k-center"] = lambda: _each(x, lambda one: estimator.fit(one).center_indices_)
    expected = _radii(x, candidates["vistok"]())
    for name, call in candidates.items():
        torch.testing.assert_close(_radii(x, call()), expected, rtol=1e-3, atol=0, msg=f"{name} covers otherwise")
    return candidates


def transition_candidates(tokens: int, width: int, dtype: torch.dtype) -> Candidates:
    """Norms and dot products of two tensors. Raises: AssertionError if the ratios and cosines differ."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(1, tokens, width, generator=generator).to(dtype) for _ in range(2))

    def eager() -> tuple[Tensor, Tensor]:
        return b.norm(dim=-1) / a.norm(dim=-1), torch.nn.functional.cosine_similarity(a, b, dim=-1)

    stats = transition_stats(a, b)
    ratio, cosine = eager()
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close((stats.b_squared / stats.a_squared).sqrt(), ratio.float(), rtol=tolerance, atol=0)
    ours = stats.dot / (stats.a_squared * stats.b_squared).sqrt()
    torch.testing.assert_close(ours, cosine.float(), rtol=0, atol=tolerance)
    return {"vistok": partial(transition_stats, a, b), "norm and cosine_similarity": eager}


def attention_candidates(queries: int, heads: int, key_heads: int, tokens: int, width: int) -> Candidates:
    """Mean attention that each key gets from a few queries. Raises: AssertionError if it differs."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, heads, queries, width, generator=generator)
    k = torch.randn(1, key_heads, tokens, width, generator=generator)

    def eager() -> Tensor:
        keys = k.repeat_interleave(heads // key_heads, dim=1)
        shares: Tensor = (q @ keys.mT / width**0.5).softmax(-1)
        return shares.mean((1, 2))

    torch.testing.assert_close(attention_rows(q, k).mean, eager())
    return {"vistok": partial(attention_rows, q, k), "repeat, softmax, mean": eager}


def compact_candidates(batch: int, tokens: int, kept: int, width: int) -> Candidates:
    """Rows that stay, side by side. Raises: AssertionError if they differ."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, tokens, width, generator=generator)
    keep = torch.zeros(batch, tokens, dtype=torch.bool)
    keep.scatter_(1, torch.rand(batch, tokens, generator=generator).topk(kept).indices, True)
    assert torch.equal(compact(x, keep).packed, x[keep])
    return {"vistok": partial(compact, x, keep), "boolean mask": lambda: x[keep]}


def _each(x: Tensor, choose: Callable[..., object]) -> Tensor:
    return torch.stack([torch.as_tensor(choose(one.numpy())).long() for one in x])


def _radii(x: Tensor, indices: Tensor) -> Tensor:
    """Distance of every pick but the first to its nearest earlier one, in float64."""
    picks = torch.stack([one[index] for one, index in zip(x.double(), indices, strict=True)])
    distances = torch.cdist(picks, picks)
    earlier = torch.ones(distances.shape[1:]).tril(-1).bool()
    nearest: Tensor = distances.where(earlier, torch.inf).amin(2)[:, 1:]
    return nearest
