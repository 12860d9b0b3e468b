"""What every quantizer promises, over all presets with their `tiny` settings; nothing here knows a method."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vistok
from vistok.ops import code_counts, perplexity, usage
from vistok.protocols import Quantized, Quantizer

NAMES = vistok.list_quantizers()


def build(name: str) -> Any:
    torch.manual_seed(0)
    return vistok.quantizer(name, **vistok.info("quantizer", name).tiny)


def vectors(quantizer: Any, *lead: int, seed: int = 0) -> Tensor:
    return torch.randn(*lead, quantizer.dim, generator=torch.Generator().manual_seed(seed))


@cache
def _trained(name: str) -> Any:
    quantizer = build(name).train()
    for seed in (100, 101):
        quantizer(vectors(quantizer, 64, seed=seed))
    return quantizer


def trained(name: str) -> Any:
    """A quantizer after two training steps, so that it has the state that training leaves."""
    return copy.deepcopy(_trained(name))


@pytest.fixture(params=NAMES)
def quantizer(request: pytest.FixtureRequest) -> Any:
    return trained(request.param)


def step(quantizer: nn.Module, *inputs: Tensor) -> Quantized:
    """One call with the noise of a fixed seed."""
    torch.manual_seed(7)
    out: Quantized = quantizer(*inputs)
    return out


def assert_same_state(a: nn.Module, b: nn.Module) -> None:
    torch.testing.assert_close(a.state_dict(), b.state_dict(), rtol=0, atol=0)


def per_codebook(quantizer: Any, indices: Tensor) -> list[Tensor]:
    books = len(quantizer.codebook_sizes)
    return list(indices.reshape(-1, books).unbind(-1))


def test_there_are_quantizers_to_test() -> None:
    assert {"vq", "fsq", "lfq", "bsq", "residual"} <= set(NAMES)


def test_it_satisfies_the_protocol(quantizer: Any) -> None:
    assert isinstance(quantizer, Quantizer)
    assert isinstance(quantizer, nn.Module)
    assert isinstance(quantizer.cannot, frozenset)
    assert quantizer.codebook_sizes and all(type(size) is int for size in quantizer.codebook_sizes)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("lead", [(3, 20), (60,), (2, 5, 6)])
def test_shapes_and_dtypes(quantizer: Any, training: bool, lead: tuple[int, ...]) -> None:
    books = len(quantizer.codebook_sizes)
    out = quantizer.train(training)(vectors(quantizer, *lead))
    assert out.embeds.shape == (*lead, quantizer.dim) and out.embeds.dtype == torch.float32
    assert out.indices.shape == (lead if books == 1 else (*lead, books)) and out.indices.dtype == torch.int64
    assert out.loss.shape == () and out.loss.dtype == torch.float32
    assert {"usage", "perplexity"} <= out.stats.keys()
    for name, value in out.stats.items():
        assert value.shape == () and not value.requires_grad and bool(torch.isfinite(value)), name


@pytest.mark.parametrize("training", [True, False])
def test_the_same_seed_gives_the_same_result(quantizer: Any, training: bool) -> None:
    twin, z = copy.deepcopy(quantizer), vectors(quantizer, 3, 20)
    first, second = step(quantizer.train(training), z), step(twin.train(training), z)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert_same_state(quantizer, twin)


def test_an_item_alone_gives_what_it_gives_inside_a_batch(quantizer: Any) -> None:
    quantizer.eval()
    z = vectors(quantizer, 4, 10)
    whole = quantizer(z)
    for item in range(4):
        alone = quantizer(z[item : item + 1])
        assert torch.equal(alone.indices[0], whole.indices[item])
        torch.testing.assert_close(alone.embeds[0], whole.embeds[item])


@pytest.mark.parametrize("padding", [float("nan"), 1e9])
def test_a_ragged_batch_gives_the_ids_of_each_item_alone(quantizer: Any, padding: float) -> None:
    quantizer.eval()
    lengths = torch.tensor([10, 0, 3, 7])
    mask = torch.arange(10) < lengths[:, None]
    z = vectors(quantizer, 4, 10).masked_fill(~mask[..., None], padding)
    whole = quantizer(z, mask)
    for item, length in enumerate(lengths.tolist()):
        alone = quantizer(z[item, :length])
        assert torch.equal(alone.indices, whole.indices[item, :length])
        torch.testing.assert_close(alone.embeds, whole.embeds[item, :length])
        assert bool((whole.indices[item, length:] == -1).all())
        assert bool((whole.embeds[item, length:] == 0).all())


@pytest.mark.parametrize("start", [build, trained], ids=["first step", "later step"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_neither_ids_nor_loss_nor_gradient_nor_state(
    name: str, training: bool, start: Callable[[str], Any]
) -> None:
    ragged = start(name).train(training)
    alone = copy.deepcopy(ragged)
    mask = torch.arange(30) < torch.tensor([30, 0, 11, 22])[:, None]
    z = vectors(ragged, 4, 30).masked_fill(~mask[..., None], float("nan")).requires_grad_()
    valid = z.detach()[mask].requires_grad_()
    out, expected = step(ragged, z, mask), step(alone, valid)
    assert torch.equal(out.indices[mask], expected.indices)
    assert torch.equal(out.embeds[mask], expected.embeds)
    torch.testing.assert_close((out.loss, out.stats), (expected.loss, expected.stats), rtol=0, atol=0)
    assert_same_state(ragged, alone)
    (out.embeds.square().sum() + out.loss).backward()
    (expected.embeds.square().sum() + expected.loss).backward()
    assert z.grad is not None and valid.grad is not None
    assert torch.equal(z.grad[mask], valid.grad)
    assert bool((z.grad[~mask] == 0).all())


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_without_any_valid_vector_is_harmless(quantizer: Any, training: bool) -> None:
    z = vectors(quantizer, 2, 3)
    out = step(quantizer.train(training), z, torch.zeros(2, 3, dtype=torch.bool))
    assert bool((out.indices == -1).all()) and bool((out.embeds == 0).all()) and float(out.loss.detach()) == 0.0
    assert all(bool(torch.isfinite(value).all()) for value in quantizer.state_dict().values())


def test_lookup_gives_the_embeds_of_eval_padding_included(quantizer: Any) -> None:
    quantizer.eval()
    mask = torch.arange(20) < torch.tensor([20, 5, 0])[:, None]
    out = quantizer(vectors(quantizer, 3, 20), mask)
    assert torch.equal(quantizer.lookup(out.indices), out.embeds)


def test_lookup_refuses_ids_that_no_codebook_has(quantizer: Any) -> None:
    books = len(quantizer.codebook_sizes)
    shape = (2,) if books == 1 else (2, books)
    for wrong in (max(quantizer.codebook_sizes), -2):
        with pytest.raises(ValueError, match="expected ids"):
            quantizer.lookup(torch.full(shape, wrong))


def test_ids_lie_in_their_codebook(quantizer: Any) -> None:
    out = quantizer.eval()(10 * vectors(quantizer, 500))
    for ids, size in zip(per_codebook(quantizer, out.indices), quantizer.codebook_sizes, strict=True):
        assert int(ids.min()) >= 0 and int(ids.max()) < size
        assert len(ids.unique()) > 1


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [0.0, 1e-6, 1.0, 1e4])
def test_a_finite_gradient_reaches_z(quantizer: Any, training: bool, size: float) -> None:
    z = (size * vectors(quantizer, 3, 20)).requires_grad_()
    target = vectors(quantizer, 3, 20, seed=1)
    out = quantizer.train(training)(z)
    ((out.embeds - target).square().sum() + out.loss).backward()
    assert z.grad is not None and bool(torch.isfinite(z.grad).all())
    if size == 1.0:
        assert bool((z.grad.abs().sum(-1) > 0).all())


def test_eval_changes_no_state(quantizer: Any) -> None:
    before = copy.deepcopy(quantizer)
    quantizer.eval()(vectors(quantizer, 64))
    assert_same_state(quantizer, before)


def test_state_dict_round_trip(request: pytest.FixtureRequest, quantizer: Any) -> None:
    name = request.node.callspec.params["quantizer"]
    fresh = build(name)
    fresh.load_state_dict(quantizer.state_dict())
    z = vectors(quantizer, 50)
    torch.testing.assert_close(fresh.eval()(z), quantizer.eval()(z), rtol=0, atol=0)
    torch.testing.assert_close(step(fresh.train(), z), step(quantizer.train(), z), rtol=0, atol=0)
    assert_same_state(fresh, quantizer)


@pytest.mark.parametrize("training", [True, False])
def test_bfloat16_vectors_keep_their_dtype_and_lose_no_precision_inside(quantizer: Any, training: bool) -> None:
    twin, z = copy.deepcopy(quantizer), vectors(quantizer, 3, 20).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = step(quantizer.train(training), z)
    full = step(twin.train(training), z.float())
    assert out.embeds.dtype == torch.bfloat16 and out.loss.dtype == torch.float32
    assert torch.equal(out.indices, full.indices)
    torch.testing.assert_close(out.loss, full.loss)


def test_it_compiles_to_one_graph_in_eval(quantizer: Any) -> None:
    if "fullgraph" in quantizer.cannot:
        pytest.skip("declares that it cannot: fullgraph")
    torch.compiler.reset()
    quantizer.eval()
    z = vectors(quantizer, 3, 20)
    compiled = torch.compile(quantizer, fullgraph=True, backend="aot_eager")
    out, expected = compiled(z), quantizer(z)
    assert torch.equal(out.indices, expected.indices)
    torch.testing.assert_close(out.embeds, expected.embeds)


def test_usage_and_perplexity_are_those_of_the_ids_and_merge_over_batches(quantizer: Any) -> None:
    quantizer.eval()
    z = vectors(quantizer, 6, 20)
    out, parts = quantizer(z), [quantizer(part) for part in z.split(2)]
    columns = per_codebook(quantizer, out.indices)
    whole = [code_counts(ids, size) for ids, size in zip(columns, quantizer.codebook_sizes, strict=True)]
    added = [torch.zeros_like(counts) for counts in whole]
    for part in parts:
        for counts, ids in zip(added, per_codebook(quantizer, part.indices), strict=True):
            counts += code_counts(ids, len(counts))
    assert all(torch.equal(a, b) for a, b in zip(whole, added, strict=True))
    for name, measure in (("usage", usage), ("perplexity", perplexity)):
        expected = torch.stack([measure(counts) for counts in added]).mean()
        torch.testing.assert_close(out.stats[name], expected)


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_plain_data(name: str) -> None:
    def plain(value: object) -> bool:
        if isinstance(value, dict):
            return all(isinstance(key, str) and plain(item) for key, item in value.items())
        return all(map(plain, value)) if isinstance(value, list) else isinstance(value, str | int | float | bool)

    config = vistok.info("quantizer", name)
    assert config.summary and plain(config.settings) and plain(config.tiny)


def test_vectors_and_masks_that_do_not_fit_are_refused(quantizer: Any) -> None:
    z = vectors(quantizer, 3, 20)
    with pytest.raises(ValueError, match="expected float vectors"):
        quantizer(z[..., :-1])
    with pytest.raises(ValueError, match="expected a bool mask"):
        quantizer(z, torch.ones(3, 19, dtype=torch.bool))
