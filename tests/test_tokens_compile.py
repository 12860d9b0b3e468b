"""TokenTensor through torch.compile and torch.export: the same numbers as in eager mode, no graph break."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vistok.rows import grid_coords
from vistok.tokens import Assignment, Selection, TokenSpec, TokenTensor

SPEC = TokenSpec("toy", dim=4, codebook_sizes=(64,), grid=(2, 3), patch=8, image_size=(16, 24))


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Without recompilation limits or graphs of other tests."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def toy(batch: int = 2, slots: int = 6, ragged: bool = True) -> TokenTensor:
    generator = torch.Generator().manual_seed(batch * 100 + slots)
    lengths = torch.randint(1, slots + 1, (batch,), generator=generator)
    return TokenTensor(
        SPEC,
        embeds=torch.randn(batch, slots, 4, generator=generator),
        indices=torch.randint(0, 64, (batch, slots), generator=generator),
        lengths=lengths if ragged else None,
        coords=grid_coords(1, slots, batch),
    )


def assert_equal(left: TokenTensor, right: TokenTensor) -> None:
    assert left.spec == right.spec
    assert left.tensors().keys() == right.tensors().keys()
    for name, value in left.tensors().items():
        torch.testing.assert_close(value, right.tensors()[name], rtol=1e-5, atol=1e-6)


def strongest(tokens: TokenTensor, count: int = 3) -> Selection:
    assert tokens.embeds is not None
    norms = tokens.embeds.norm(dim=2).masked_fill(~tokens.mask, -1)
    return Selection(norms.topk(count, dim=1).indices.sort(dim=1).values, None, norms)


_STEPS: dict[str, Callable[[TokenTensor], TokenTensor]] = {
    "keep": lambda t: t.keep(t.coords[..., 1] % 2 == 0),  # type: ignore[index]
    "select": lambda t: t.select(strongest(t)),
    "truncate": lambda t: t.truncate(4),
    "truncate_per_item": lambda t: t.truncate(torch.full((t.embeds.shape[0],), 2)),  # type: ignore[union-attr]
    "merge": lambda t: t.merge(Assignment(t.coords[..., 1].long() // 2, 3)),  # type: ignore[index]
    "zero_padding": lambda t: t.zero_padding(),
    "to": lambda t: t.to(torch.bfloat16),
    "cat": lambda t: TokenTensor.cat([t, t.truncate(2)]),
    "rows": lambda t: t[1:],
}


@pytest.mark.parametrize("ragged", [True, False])
@pytest.mark.parametrize("step", _STEPS)
def test_a_compiled_method_equals_eager(step: str, ragged: bool) -> None:
    tokens = toy(ragged=ragged)
    compiled = torch.compile(_STEPS[step], fullgraph=True, backend="aot_eager")
    assert_equal(compiled(tokens), _STEPS[step](tokens))


class Block(nn.Module):
    """Tokens in, tokens out: mix, choose, cut, union."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)
        with torch.no_grad():
            self.mix.weight.copy_(torch.arange(16.0).reshape(4, 4).sin())
            self.mix.bias.zero_()

    def forward(self, tokens: TokenTensor) -> TokenTensor:
        assert tokens.embeds is not None
        mixed = tokens.replace(embeds=tokens.embeds + self.mix(tokens.embeds).tanh())
        assert mixed.coords is not None
        kept = mixed.keep(mixed.coords[..., 1] != 1).truncate(5)
        chosen = kept.select(strongest(kept, 4))
        assert chosen.coords is not None
        return chosen.merge(Assignment(torch.arange(4).expand(chosen.coords.shape[:2]) // 2, 2))


def test_a_compiled_module_gives_the_gradients_of_eager() -> None:
    grads = []
    for backend in (None, "aot_eager"):
        block = Block()
        run: Any = block if backend is None else torch.compile(block, fullgraph=True, backend=backend)
        out = run(toy(slots=8))
        (out.embeds.square() * out.mask[..., None]).sum().backward()
        grads.append([parameter.grad for parameter in block.parameters()])
    torch.testing.assert_close(grads[0], grads[1])
    assert grads[0][0] is not None and grads[0][0].abs().sum() > 0


def test_other_numbers_of_tokens_need_one_more_graph_only() -> None:
    graphs = 0

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        nonlocal graphs
        graphs += 1
        return graph.forward

    compiled = torch.compile(Block(), fullgraph=True, backend=count)
    for slots in (8, 9, 12, 16):
        assert_equal(compiled(toy(slots=slots)), Block()(toy(slots=slots)))
    assert graphs == 2


def export_and_reload(module: nn.Module, args: tuple[Any, ...], shapes: Any, folder: Path) -> nn.Module:
    exported = torch.export.export(module, args, dynamic_shapes=shapes)
    torch.export.save(exported, folder / "module.pt2")
    loaded: nn.Module = torch.export.load(folder / "module.pt2").module()
    return loaded


@pytest.mark.parametrize("ragged", [True, False])
def test_an_exported_module_takes_and_gives_tokens_of_any_number(ragged: bool, tmp_path: Path) -> None:
    slots = torch.export.Dim("slots", min=6, max=4096)
    per_field = [{1: slots}, {1: slots}, *([None] if ragged else []), {1: slots}]
    loaded = export_and_reload(Block(), (toy(slots=9, ragged=ragged),), (per_field,), tmp_path)
    for number in (6, 7, 9, 100):
        tokens = toy(slots=number, ragged=ragged)
        assert_equal(loaded(tokens), Block()(tokens))


def test_an_exported_module_takes_batches_of_any_size(tmp_path: Path) -> None:
    batch, slots = torch.export.Dim("batch", min=2, max=512), torch.export.Dim("slots", min=6, max=4096)
    per_field = [{0: batch, 1: slots}, {0: batch, 1: slots}, {0: batch}, {0: batch, 1: slots}]
    loaded = export_and_reload(Block(), (toy(batch=3, slots=9),), (per_field,), tmp_path)
    for items, number in ((2, 6), (5, 9), (4, 33)):
        assert_equal(loaded(toy(items, number)), Block()(toy(items, number)))


class Choose(nn.Module):
    """Tokens to a selection, as a pruner."""

    def forward(self, tokens: TokenTensor) -> Selection:
        return strongest(tokens)


def test_an_exported_module_returns_a_selection(tmp_path: Path) -> None:
    tokens = toy()
    selection = export_and_reload(Choose(), (tokens,), None, tmp_path)(tokens)
    assert isinstance(selection, Selection)
    assert_equal(tokens.select(selection), tokens.select(strongest(tokens)))
