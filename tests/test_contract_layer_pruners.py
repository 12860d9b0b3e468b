"""What every pruner that cuts between decoder layers promises, over all of `vistok.list_pruners()` that do.

A toy decoder runs the plan: random weights, a few layers, no language model. A method that cannot do something says so
in `cannot`, by these names: "bf16" (hidden states of half precision).
"""

import copy
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import vistok
from vistok.protocols import LayerCut, LayerPruner, LayerView, Transition
from vistok.rows import take_rows

LAYERS, WIDTH, HEADS = 8, 16, 2
# Prompts: tokens before the image, in it, behind it; the second has two images with text between them.
PROMPTS = ([(3, 0), (12, 1), (4, 0)], [(2, 0), (6, 1), (2, 0), (5, 2), (3, 0)], [(1, 0), (9, 1), (6, 0)])


def layer_pruners() -> list[str]:
    found = []
    for name in vistok.list_pruners():
        if isinstance(vistok.pruner(name, **vistok.info("pruner", name).tiny), LayerPruner):
            found.append(name)
    return found


@dataclass(frozen=True, eq=False)
class Attention:
    """Rows of a layer's causal attention, in full."""

    queries: Tensor
    key: Tensor
    valid: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        scores = self.queries @ self.key.transpose(2, 3) / self.key.shape[3] ** 0.5
        size = scores.shape[-1]
        visible = torch.ones(size, size, dtype=torch.bool).tril() & self.valid[:, None, None]
        weights = scores.float().masked_fill(~visible, -torch.inf).softmax(-1).nan_to_num().mean(1)
        wanted = rows & self.valid
        return (weights * wanted[..., None]).sum(1) / wanted.sum(1, keepdim=True).clamp(min=1)

    def keys(self) -> Tensor:
        return self.key


class Toy:
    """A decoder of random mixing layers, the same for every item whatever stands beside it."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(3)
        self.weights = torch.randn(LAYERS, 6, WIDTH, WIDTH, generator=draw) / WIDTH**0.5

    def attention(self, layer: int, hidden: Tensor, valid: Tensor) -> Attention:
        heads = [
            (hidden @ self.weights[layer, part].to(hidden.dtype)).unflatten(2, (HEADS, -1)).transpose(1, 2)
            for part in (0, 1)
        ]
        return Attention(heads[0], heads[1], valid)

    def run(self, layer: int, hidden: Tensor) -> tuple[Tensor, Transition]:
        parts = [hidden]
        for part in (2, 3):
            parts.append(torch.tanh(parts[-1] @ self.weights[layer, part].to(hidden.dtype)))
        out = hidden + parts[1] + parts[2]
        return out, Transition(hidden, parts[1], parts[1], parts[2])


def prompts(dtype: torch.dtype = torch.float32, junk: float = 0.0) -> LayerView:
    """Left-padded prompts as the decoder's input."""
    draw = torch.Generator().manual_seed(5)
    rows = [[image - 1 for count, image in prompt for _ in range(count)] for prompt in PROMPTS]
    longest = max(map(len, rows))
    images = torch.tensor([[-1] * (longest - len(row)) + row for row in rows])
    valid = torch.tensor([[False] * (longest - len(row)) + [True] * len(row) for row in rows])
    values = [torch.randn(len(row), WIDTH, generator=draw) for row in rows]
    hidden = torch.stack([torch.cat([torch.full((longest - len(v), WIDTH), junk), v]) for v in values]).to(dtype)
    visual = images >= 0
    system = valid & (visual.cumsum(1) == 0)
    instruction = valid & (visual.flip(1).cumsum(1).flip(1) == 0)
    view = LayerView(
        layer=-1,
        layers=LAYERS,
        hidden=hidden,
        visual=visual,
        system=system,
        text=valid & ~visual & ~system,
        instruction=instruction,
        valid=valid,
        source=torch.arange(longest).expand_as(images),
        image_ids=images,
        slots=visual.to(torch.int8).sort(dim=1, descending=True, stable=True).indices[:, : int(visual.sum(1).max())],
        counts=visual.sum(1),
        original=visual.sum(1),
    )
    return view


def row_of(view: LayerView, row: int) -> LayerView:
    """One item without its padding."""
    keep = view.valid[row]
    fields = ("hidden", "visual", "system", "text", "instruction", "valid", "image_ids")
    cut = {name: getattr(view, name)[row : row + 1, keep] for name in fields}
    counts = cut["visual"].sum(1)
    slots = cut["visual"].to(torch.int8).sort(dim=1, descending=True, stable=True).indices[:, : int(counts)]
    places = torch.arange(int(keep.sum()))[None]
    return LayerView(-1, LAYERS, **cut, source=places, slots=slots, counts=counts, original=counts)


def shortened(view: LayerView, cut: LayerCut) -> LayerView:
    """The view of what a cut leaves, items of different lengths padded by what they dropped."""
    lengths = view.counts.clamp(max=cut.index.shape[1]) if cut.lengths is None else cut.lengths
    kept = ~view.visual & view.valid
    for row, length in enumerate(lengths.tolist()):
        kept[row, view.slots[row, cut.index[row, :length]]] = True
    width = int(kept.sum(1).max())
    index = kept.to(torch.int8).sort(dim=1, descending=True, stable=True).indices[:, :width].sort(dim=1).values
    alive = kept.gather(1, index)
    fields = {
        name: getattr(view, name).gather(1, index) & alive for name in ("visual", "system", "text", "instruction")
    }
    counts = fields["visual"].sum(1)
    slots = fields["visual"].to(torch.int8).sort(dim=1, descending=True, stable=True).indices[:, : int(counts.max())]
    return replace(
        view,
        **fields,
        hidden=take_rows(view.hidden, index),
        valid=alive,
        source=view.source.gather(1, index),
        image_ids=view.image_ids.gather(1, index).masked_fill(~alive, -1),
        slots=slots,
        counts=counts,
    )


@torch.no_grad()
def run(pruner: Any, view: LayerView) -> list[tuple[LayerView, LayerCut | None]]:
    """The plan over the toy decoder: every cut with the view that it was made on."""
    plan, toy, made = pruner.plan.resolve(LAYERS), Toy(), []
    call = pruner.begin(view)
    for layer in range(LAYERS):
        before = view.hidden
        # Only valid tokens carry on: padding may hold anything.
        hidden, transition = toy.run(layer, before)
        view = replace(view, layer=layer, hidden=hidden, transition=None, attention=None, next_attention=None)
        if layer in plan.observe:
            call.observe(replace(view, transition=transition))
        if layer in plan.prune_after:
            own = toy.attention(layer, before, view.valid) if "attention" in plan.needs else None
            coming = toy.attention(layer + 1, hidden, view.valid) if "next_attention" in plan.needs else None
            cut = call.prune(replace(view, attention=own, next_attention=coming))
            made.append((view, cut))
            view = view if cut is None else shortened(view, cut)
    return made


def kept(made: list[tuple[LayerView, LayerCut | None]], row: int) -> list[list[int]]:
    """What one item keeps at every cut, counted among its valid tokens of the decoder's input."""
    found = []
    for view, cut in made:
        slots = view.slots[row, : int(view.counts[row])]
        if cut is not None:
            length = int(cut.lengths[row]) if cut.lengths is not None else min(cut.index.shape[1], len(slots))
            slots = slots[cut.index[row, :length]]
        found.append(view.source[row, slots].tolist())
    return found


def offset(row: int) -> int:
    return int((~prompts().valid[row]).sum())


@pytest.fixture(params=layer_pruners())
def pruner(request: pytest.FixtureRequest) -> Any:
    return vistok.pruner(str(request.param), **vistok.info("pruner", str(request.param)).tiny)


def test_there_are_such_pruners() -> None:
    assert "transprune" in layer_pruners()


def test_its_plan_fits_a_small_and_a_large_decoder_or_says_what_does_not(pruner: Any) -> None:
    assert isinstance(pruner.cannot, frozenset) and isinstance(pruner.plan.needs, frozenset)
    plan = pruner.plan.resolve(LAYERS)
    assert plan.prune_after and all(isinstance(layer, int) for layer in (*plan.observe, *plan.prune_after))
    assert plan.needs <= {"attention", "next_attention"} and plan.positions in ("keep", "reindex")


def test_a_cut_names_visual_tokens_of_its_item_once_and_in_order(pruner: Any) -> None:
    for view, cut in run(pruner, prompts()):
        if cut is None:
            continue
        assert cut.index.dtype == torch.int64 and cut.index.shape[1] <= view.slots.shape[1]
        for row, count in enumerate(view.counts.tolist()):
            length = int(cut.lengths[row]) if cut.lengths is not None else min(cut.index.shape[1], count)
            chosen = cut.index[row, :length].tolist()
            assert chosen == sorted(set(chosen)) and all(0 <= place < count for place in chosen)


def test_an_item_of_a_padded_batch_keeps_what_it_keeps_alone(pruner: Any) -> None:
    together = run(pruner, prompts())
    for row in range(len(PROMPTS)):
        alone = run(pruner, row_of(prompts(), row))
        shifted = [[place - offset(row) for place in places] for places in kept(together, row)]
        assert shifted == kept(alone, 0)


def test_what_lies_in_padding_does_not_matter(pruner: Any) -> None:
    expected = [kept(run(pruner, prompts()), row) for row in range(len(PROMPTS))]
    for junk in (1e30, torch.nan):
        assert [kept(run(pruner, prompts(junk=junk)), row) for row in range(len(PROMPTS))] == expected


def test_calls_share_no_state(pruner: Any) -> None:
    before = copy.deepcopy(vars(pruner))
    first = run(pruner, prompts())
    begun = pruner.begin(prompts())
    second = run(pruner, prompts())
    assert vars(pruner) == before and begun is not None
    assert [kept(first, row) for row in range(3)] == [kept(second, row) for row in range(3)]


def test_it_takes_hidden_states_of_half_precision(pruner: Any) -> None:
    if "bf16" in pruner.cannot:
        pytest.skip("it cannot take bf16, by its own declaration")
    half, full = run(pruner, prompts(torch.bfloat16)), run(pruner, prompts())
    assert [len(row) for row in kept(half, 0)] == [len(row) for row in kept(full, 0)]


def test_scores_are_float32_over_the_current_visual_tokens(pruner: Any) -> None:
    for view, cut in run(pruner, prompts()):
        if cut is not None and cut.scores is not None:
            assert cut.scores.shape == view.slots.shape and cut.scores.dtype == torch.float32


def test_a_prompt_without_visual_tokens_is_legal(pruner: Any) -> None:
    view = prompts()
    none = torch.zeros_like(view.visual)
    counts = torch.zeros_like(view.counts)
    view = replace(
        view,
        visual=none,
        text=none,
        instruction=none,
        system=view.valid,
        image_ids=torch.full_like(view.image_ids, -1),
        slots=view.slots[:, :0],
        counts=counts,
        original=counts,
    )
    assert all(cut is None or cut.index.shape[1] == 0 for _, cut in run(pruner, view))
