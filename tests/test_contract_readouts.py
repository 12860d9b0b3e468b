"""What every readout promises, over all presets with their `tiny` settings; nothing here knows a method."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vistok
from vistok.protocols import Readout

SIDE = 16


def build(name: str) -> Any:
    torch.manual_seed(0)
    readout: Any = vistok.readout(name, **vistok.info("readout", name).tiny)
    return readout.eval()


@pytest.fixture(params=vistok.list_readouts())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def readout(name: str) -> Any:
    return build(name)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def learned(readout: nn.Module) -> dict[str, nn.Parameter]:
    return {name: value for name, value in readout.named_parameters() if value.requires_grad}


def test_there_are_readouts() -> None:
    assert {"vqt", "linear"} <= set(vistok.list_readouts())


def test_it_is_a_readout_of_the_shapes_it_says(readout: Any, name: str, images: Tensor) -> None:
    assert isinstance(readout, Readout) and readout.name == name
    out = readout(images)
    assert out.features.shape == (3, sum(readout.groups)) and out.pooled.ndim == 2
    assert out.queries.ndim == 4 and out.backbone_features.ndim == 3
    assert out.queries.shape[3] == out.backbone_features.shape[2]
    assert all(bool(value.isfinite().all()) for value in out)


def test_tokens_are_as_many_for_every_image(readout: Any, images: Tensor) -> None:
    tokens = readout.tokens(images).check()
    assert tokens.embeds is not None and tokens.lengths is None
    assert tokens.embeds.shape[0] == 3 and tokens.embeds.shape[2] == tokens.spec.dim
    assert readout.tokens(images[:1]).num_slots == tokens.num_slots


def test_the_backbone_is_what_it_would_be_alone_and_takes_no_gradient(readout: Any, images: Tensor) -> None:
    alone = copy.deepcopy(readout.vit)
    out = readout.train()(images)
    with torch.no_grad():
        assert torch.equal(out.backbone_features, alone.forward_features(images))
    assert not out.backbone_features.requires_grad and not out.pooled.requires_grad
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in readout.vit.modules()]
    assert sum(hooks) == 0


def test_gradients_reach_all_that_is_learned_and_nothing_else(readout: Any, name: str, images: Tensor) -> None:
    if "learn" in readout.cannot:
        assert not learned(readout)
        pytest.skip("declares that it cannot: learn")
    with torch.no_grad():
        for value in learned(readout).values():
            value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0)))
    out = readout.train()(images)
    out.features.square().mul(torch.arange(out.features.shape[1])).sum().backward()
    for own, value in learned(readout).items():
        assert value.grad is not None and bool(value.grad.isfinite().all()), own
        # The bias of keys is the same for all that a query attends to.
        assert bool(value.grad.any()) or own.endswith("in_proj_bias"), own
    assert all(value.grad is None for value in readout.vit.parameters())


def test_an_image_alone_gives_what_it_gives_inside_a_batch(readout: Any, images: Tensor) -> None:
    whole = readout(images)
    for item in range(3):
        for together, alone in zip(whole, readout(images[item : item + 1]), strict=True):
            torch.testing.assert_close(alone[0], together[item], atol=1e-5, rtol=1e-4)


def test_what_was_learned_comes_back_without_the_backbone(readout: Any, name: str, images: Tensor) -> None:
    state = readout.state_dict()
    assert set(state) == set(learned(readout))
    fresh = build(name)
    with torch.no_grad():
        for value in learned(fresh).values():
            value.normal_()
    fresh.load_state_dict(state)
    assert torch.equal(fresh(images).features, readout(images).features)
    assert {f"vit.{own}" for own in readout.vit.state_dict()} <= set(readout.state_dict(full=True))


def test_what_is_no_batch_of_images_is_refused(readout: Any, images: Tensor) -> None:
    for wrong in (images[0], images.double(), (255 * images).to(torch.uint8)):
        with pytest.raises(ValueError, match="expected images .B, 3, H, W. of torch.float32, .* got"):
            readout(wrong)


def test_it_runs_under_autocast(readout: Any, name: str, images: Tensor) -> None:
    exact = readout(images).features
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = readout(images).features
    # Features of length one are small each: only their direction shows that they are wrong.
    assert bool((nn.functional.cosine_similarity(features.float(), exact) > 0.99).all())
    torch.testing.assert_close(features.float().norm(dim=1), exact.norm(dim=1), rtol=0.05, atol=0)
    if "learn" not in readout.cannot:
        features.float().square().sum().backward()
        assert all(value.grad is not None and bool(value.grad.isfinite().all()) for value in learned(readout).values())


def test_double_precision_stays(readout: Any, images: Tensor) -> None:
    out = readout.double()(images.double())
    assert all(value.dtype == torch.float64 for value in out)


def test_train_returns_self_and_leaves_the_backbone_in_evaluation(readout: Any) -> None:
    assert readout.train() is readout and readout.training
    assert not any(module.training for module in readout.vit.modules())
