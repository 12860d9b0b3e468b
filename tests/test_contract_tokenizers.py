"""What every tokenizer promises, over all of `vistok.list_tokenizers()`: a new method needs no edit here.

Each name is built from its preset with the `tiny:` block on top. A method that cannot do something says so in `cannot`,
by these names: "decode", "backward" (training by `forward`), "budget" (fewer tokens on demand), "any_size" (images of
other sizes than `spec.image_size`), "fullgraph" (torch.compile without graph breaks), "bf16".
"""

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import vistok
from vistok.config import deep_merge
from vistok.protocols import Tokenizer
from vistok.tokens import TokenTensor

ODD_SIZES = [(37, 50), (1, 1), (3, 64), (40, 7)]


def images_of(tokenizer: Tokenizer, batch: int = 3, size: tuple[int, ...] = (24, 40), seed: int = 0) -> Tensor:
    """Smooth random images [B, 3, H, W] in [0, 1], of the tokenizer's own size if it has one."""
    height, width = tokenizer.spec.image_size or size
    coarse = torch.rand(batch, 3, 5, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")


def skip_if_it_cannot(tokenizer: Tokenizer, name: str, what: str) -> None:
    if what in tokenizer.cannot:
        pytest.skip(f"{name} cannot {what!r}, by its own declaration")


def build(name: str) -> Tokenizer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = vistok.tokenizer(name, **vistok.info("tokenizer", name).tiny)
    if isinstance(tokenizer, torch.nn.Module):
        tokenizer.eval()
    return tokenizer


def distinct() -> list[str]:
    """A name for each method and settings: presets of one method that are the same when tiny are tested once."""
    found: dict[str, str] = {}
    for name in vistok.list_tokenizers():
        preset = vistok.info("tokenizer", name)
        built = {"method": preset.method, **deep_merge(preset.settings, preset.tiny)}
        found.setdefault(json.dumps(built, sort_keys=True), name)
    return list(found.values())


def by_weights() -> list[Any]:
    """The same names; compiling takes seconds for each, so those that no weights come with are left to the slow run."""
    presets = [vistok.info("tokenizer", name) for name in distinct()]
    return [pytest.param(preset.name, marks=() if preset.weights else pytest.mark.slow) for preset in presets]


@pytest.fixture(params=distinct())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tokenizer(name: str) -> Tokenizer:
    return build(name)


@torch.no_grad()
def encode(tokenizer: Tokenizer, images: Tensor) -> TokenTensor:
    return tokenizer.encode(images)


def assert_same_tokens(left: TokenTensor, right: TokenTensor) -> None:
    """Equal ids; embeds equal up to the rounding of other convolution kernels."""
    assert left.spec == right.spec
    a, b = left.packed().values, right.packed().values
    assert a.keys() == b.keys()
    for field, value in a.items():
        torch.testing.assert_close(value, b[field], rtol=1e-4, atol=1e-4)


def test_encode_gives_valid_tokens_with_their_spec_filled_in(tokenizer: Tokenizer, name: str) -> None:
    images = images_of(tokenizer)
    tokens = encode(tokenizer, images).check()
    spec = tokens.spec
    assert isinstance(tokenizer, Tokenizer)
    assert len(tokens) == len(images)
    assert spec.name == name and tokenizer.spec.name == name
    assert spec.image_size == images.shape[2:]
    assert spec.codebook_sizes == tokenizer.spec.codebook_sizes
    assert (tokens.indices is not None) == bool(spec.codebook_sizes)
    if spec.order == "raster":
        assert spec.patch > 0
        assert tokens.num_slots == spec.prefix + prod(spec.grid)
    if tokens.embeds is not None:
        assert tokens.embeds.dtype == torch.float32
        assert tokens.embeds.isfinite().all()


def test_encoding_twice_gives_the_same_tokens(tokenizer: Tokenizer, name: str) -> None:
    images = images_of(tokenizer)
    first = encode(tokenizer, images)
    for second in (encode(tokenizer, images), encode(build(name), images)):
        assert first.spec == second.spec
        for field, value in first.tensors().items():
            assert torch.equal(value, second.tensors()[field])


def test_other_images_give_other_tokens(tokenizer: Tokenizer) -> None:
    one, other = (encode(tokenizer, images_of(tokenizer, seed=seed)) for seed in (0, 1))
    field = "indices" if one.indices is not None else "embeds"
    assert not torch.equal(one.tensors()[field], other.tensors()[field])


def test_a_batch_of_one_gives_what_it_gives_inside_a_batch(tokenizer: Tokenizer) -> None:
    images = images_of(tokenizer)
    together = encode(tokenizer, images)
    for row in range(len(images)):
        assert_same_tokens(encode(tokenizer, images[row : row + 1]), together[row : row + 1])


def test_decoding_a_batch_of_one_gives_what_it_gives_inside_a_batch(tokenizer: Tokenizer, name: str) -> None:
    skip_if_it_cannot(tokenizer, name, "decode")
    tokens = encode(tokenizer, images_of(tokenizer))
    with torch.no_grad():
        together = tokenizer.decode(tokens)
        for row in range(len(tokens)):
            torch.testing.assert_close(tokenizer.decode(tokens[row : row + 1])[0], together[row], rtol=0, atol=1e-4)


def test_decoding_gives_images_of_the_encoded_size_in_range(tokenizer: Tokenizer, name: str) -> None:
    if "decode" in tokenizer.cannot:
        with pytest.raises(NotImplementedError):
            tokenizer.decode(encode(tokenizer, images_of(tokenizer)))
        return
    images = images_of(tokenizer)
    with torch.no_grad():
        back = tokenizer.decode(tokenizer.encode(images))
    assert back.shape == images.shape and back.dtype == torch.float32
    assert back.min() >= 0 and back.max() <= 1
    assert back.std() > 0


@pytest.mark.parametrize("size", ODD_SIZES)
def test_images_of_odd_sizes_come_back_in_their_size(tokenizer: Tokenizer, name: str, size: tuple[int, int]) -> None:
    skip_if_it_cannot(tokenizer, name, "any_size")
    images = images_of(tokenizer, size=size)
    tokens = encode(tokenizer, images).check()
    assert tokens.spec.image_size == size
    if "decode" not in tokenizer.cannot:
        with torch.no_grad():
            assert tokenizer.decode(tokens).shape == images.shape


def test_ids_alone_are_enough_to_decode(tokenizer: Tokenizer, name: str) -> None:
    skip_if_it_cannot(tokenizer, name, "decode")
    tokens = encode(tokenizer, images_of(tokenizer))
    if tokens.indices is None:
        assert not tokens.spec.codebook_sizes
        return
    with torch.no_grad():
        torch.testing.assert_close(
            tokenizer.decode(tokens.replace(embeds=None)), tokenizer.decode(tokens), rtol=0, atol=1e-5
        )


def test_a_budget_is_kept_or_refused(tokenizer: Tokenizer) -> None:
    images = images_of(tokenizer)
    for budget in (2, torch.tensor([1, 2, 3])):
        if "budget" in tokenizer.cannot:
            with pytest.raises(ValueError, match="budget"):
                tokenizer.encode(images, budget=budget)
        else:
            assert (tokenizer.encode(images, budget=budget).check().valid_lengths <= torch.as_tensor(budget)).all()


def test_training_reaches_every_trainable_parameter(tokenizer: Tokenizer, name: str) -> None:
    skip_if_it_cannot(tokenizer, name, "backward")
    assert isinstance(tokenizer, torch.nn.Module)
    tokenizer.train()
    out = tokenizer(images_of(tokenizer))
    terms = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor) and leaf.requires_grad]
    torch.stack([term.square().mean() for term in terms]).sum().backward()
    for parameter_name, parameter in tokenizer.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, parameter_name


def test_state_moves_to_a_model_of_other_weights(tokenizer: Tokenizer, name: str) -> None:
    assert isinstance(tokenizer, torch.nn.Module)
    other = build(name)
    assert isinstance(other, torch.nn.Module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    images = images_of(tokenizer)
    other.load_state_dict(tokenizer.state_dict())
    assert_same_tokens(encode(other, images), encode(tokenizer, images))


def test_a_saved_folder_is_a_checkpoint_of_the_name(tokenizer: Tokenizer, name: str, tmp_path: Path) -> None:
    images = images_of(tokenizer)
    tokenizer.save_pretrained(tmp_path)  # type: ignore[attr-defined]
    loaded = vistok.tokenizer(name, checkpoint=tmp_path)
    assert isinstance(loaded, torch.nn.Module)
    first, second = encode(tokenizer, images), encode(loaded.eval(), images)
    assert first.spec == second.spec
    for field, value in first.tensors().items():
        assert torch.equal(value, second.tensors()[field])


def test_it_works_in_bfloat16(tokenizer: Tokenizer, name: str) -> None:
    skip_if_it_cannot(tokenizer, name, "bf16")
    assert isinstance(tokenizer, torch.nn.Module)
    exact = encode(tokenizer, images_of(tokenizer))
    tokenizer.to(torch.bfloat16)
    images = images_of(tokenizer).to(torch.bfloat16)
    tokens = encode(tokenizer, images).check()
    assert tokens.num_slots == exact.num_slots
    if "decode" not in tokenizer.cannot:
        with torch.no_grad():
            back = tokenizer.decode(tokens)
        assert back.shape == images.shape and back.isfinite().all()


@pytest.mark.parametrize("name", by_weights(), indirect=True)
def test_encode_and_decode_compile_into_one_graph_each(tokenizer: Tokenizer, name: str) -> None:
    skip_if_it_cannot(tokenizer, name, "fullgraph")
    images = images_of(tokenizer)
    torch.compiler.reset()
    tokens = torch.compile(lambda images: encode(tokenizer, images), fullgraph=True, backend="aot_eager")(images)
    assert_same_tokens(tokens.check(), encode(tokenizer, images))
    if "decode" in tokenizer.cannot:
        return
    with torch.no_grad():
        decode = torch.compile(tokenizer.decode, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(decode(tokens), tokenizer.decode(tokens), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda images: (images * 255).to(torch.uint8), "255"),
        (lambda images: images * 255, r"\[0, 1\].*preprocess"),
        (lambda images: images * 2 - 1, r"\[0, 1\].*preprocess"),
        (lambda images: images.where(images > images.min(), torch.nan), r"\[0, 1\]"),
        (lambda images: images[0], r"\[B, 3, H, W\]"),
        (lambda images: images[:, :1], r"\[B, 3, H, W\]"),
        (lambda images: images[:, :, :0], r"\[B, 3, H, W\]"),
    ],
    ids=["uint8", "0..255", "-1..1", "nan", "no_batch", "grey", "empty"],
)
def test_pictures_of_another_kind_are_refused_with_the_remedy(tokenizer: Tokenizer, spoil, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        tokenizer.encode(spoil(images_of(tokenizer)))
