"""The offline cache: what is read back is what was worked out, and nothing else can slip in."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vistok.readouts._feature_cache import FeatureCache
from vistok.readouts.vqt import VQT
from vistok.readouts.vqt_fusion import VQTFusion

from .conftest import SIDE, randomize, timm_vit

BATCHES = [
    (torch.randn(size, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(size)), torch.arange(size))
    for size in (4, 3, 2)
]


@pytest.fixture
def vqt(vit: nn.Module) -> VQT:
    torch.manual_seed(0)
    return VQT(vit, 2)


def test_features_come_back_with_their_labels(vqt: VQT, tmp_path: Path) -> None:
    cache = vqt.train().extract(BATCHES, tmp_path / "cache")
    assert vqt.training and len(cache) == 3
    vqt.eval()
    for found, (images, labels) in zip(cache, BATCHES, strict=True):
        assert found.captured is None and found.labels is not None and found.features is not None
        assert torch.equal(found.labels, labels) and torch.equal(found.features, vqt(images).features)
    assert not list((tmp_path / "cache").glob("*.tmp.*"))


@pytest.mark.parametrize("readout", ["concat", "wsum"])
def test_queries_train_on_cached_keys_and_values_as_on_images(readout: Any, vit: nn.Module, tmp_path: Path) -> None:
    vqt = VQT(vit, 2, readout=readout, kv_mode="kv", query_dropout=0.0)
    vqt.extract([images for images, _ in BATCHES], tmp_path / "cache", "kv")
    other = VQT(vit, 3, readout=readout, kv_mode="kv", query_dropout=0.0)  # any queries may read it
    for found, (images, _) in zip(FeatureCache(tmp_path / "cache"), BATCHES, strict=True):
        assert found.captured is not None and found.labels is None
        grads = []
        for out in (other.read(found.captured), other(images)):
            out.features.mul(torch.arange(other.num_features)).sum().backward()
            grads.append((out.features.detach(), other.queries.grad))
            other.zero_grad()
        torch.testing.assert_close(grads[0], grads[1])


def test_half_the_bits_are_stored_on_request(vqt: VQT, tmp_path: Path) -> None:
    cache = vqt.extract(BATCHES, tmp_path / "cache", "kv", dtype=torch.float16)
    found = next(iter(cache))
    assert found.captured is not None and found.captured.kept[0].tensors[0].dtype == torch.float16
    features = vqt.eval().read(found.captured).features
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, vqt(BATCHES[0][0]).features, atol=5e-3, rtol=0)


def test_a_run_that_was_cut_short_goes_on(vqt: VQT, tmp_path: Path) -> None:
    def failing() -> Any:
        yield from BATCHES[:2]
        raise KeyboardInterrupt

    folder = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        vqt.extract(failing(), folder)
    with pytest.raises(ValueError, match="expected a finished cache"):
        FeatureCache(folder)
    times = [path.stat().st_mtime_ns for path in sorted(folder.glob("*.safetensors"))]
    calls: list[int] = []
    handle = vqt.vit.register_forward_pre_hook(lambda *_: calls.append(1))
    norm = vqt.vit.norm.register_forward_hook(lambda *_: calls.append(1))
    cache = vqt.extract(BATCHES, folder)
    handle.remove(), norm.remove()
    assert len(calls) == 1 and len(cache) == 3
    assert [path.stat().st_mtime_ns for path in sorted(folder.glob("*.safetensors"))][:2] == times


def test_what_does_not_belong_together_is_refused(vqt: VQT, vit: nn.Module, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    vqt.extract(BATCHES, folder)
    with pytest.raises(ValueError, match="changed its order"):
        vqt.extract(BATCHES[::-1], folder)
    with pytest.raises(ValueError, match="the loader has 2 only"):
        vqt.extract(BATCHES[:2], folder)
    others = [VQT(vit, 2, readout="mean"), VQT(randomize(timm_vit(), seed=7), 2), VQT(vit, 2)]
    for other in others:  # the last has other queries
        with pytest.raises(ValueError, match="other weights or settings"):
            other.extract(BATCHES, folder)
    with pytest.raises(ValueError, match="other weights or settings"):
        vqt.extract(BATCHES, folder, "kv")
    with pytest.raises(ValueError, match="or its labels"):
        vqt.extract([(images, labels + 1) for images, labels in BATCHES], folder)
    with pytest.raises(ValueError, match="or its labels"):
        vqt.extract([images for images, _ in BATCHES], folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ValueError, match="empty folder or a feature cache"):
        vqt.extract(BATCHES, tmp_path / "mine")
    with pytest.raises(FileNotFoundError, match="no cache.json"):
        FeatureCache(tmp_path / "mine")


def test_settings_that_weights_do_not_show_are_told_apart(vit: nn.Module, tmp_path: Path) -> None:
    twin = timm_vit(num_heads=4)
    twin.load_state_dict(vit.state_dict())
    for what in ("features", "kv"):
        made = [VQT(net, 1) for net in (vit, twin)]
        made[1].load_state_dict(made[0].state_dict())
        made[0].extract(BATCHES, tmp_path / what, what)
        with pytest.raises(ValueError, match="other weights or settings"):
            made[1].extract(BATCHES, tmp_path / what, what)
    fused = [VQTFusion(vit, heads=heads) for heads in (2, 4)]
    fused[1].load_state_dict(fused[0].state_dict())
    fused[0].extract(BATCHES, tmp_path / "fused")
    with pytest.raises(ValueError, match="other weights or settings"):
        fused[1].extract(BATCHES, tmp_path / "fused")


def test_keys_and_values_of_other_layers_are_refused(vit: nn.Module, tmp_path: Path) -> None:
    cache = VQT(vit, 1, layers=[0, 1]).extract(BATCHES, tmp_path / "cache", "kv")
    for layers in ([1, 2], [1]):
        with pytest.raises(ValueError, match=r"expected what blocks \[1.*left behind, got that of \[0, 1\]"):
            VQT(vit, 1, layers=layers).read(next(iter(cache)).captured)


def test_only_frozen_backbones_and_batches_of_images_can_be_cached(vqt: VQT, vit: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a frozen backbone"):
        VQT(vit, 2, backbone_grad=True).extract(BATCHES, tmp_path / "a")
    with pytest.raises(ValueError, match="expected 'features' or 'kv', got 'tokens'"):
        vqt.extract(BATCHES, tmp_path / "b", "tokens")
    wrong: list[tuple[Tensor, ...]] = [(*BATCHES[0], BATCHES[0][1])]
    with pytest.raises(ValueError, match="expected batches of images"):
        vqt.extract(wrong, tmp_path / "c")
    with pytest.raises(ValueError, match="of torch.float32, .* got .* of torch.uint8"):
        vqt.extract([(255 * BATCHES[0][0]).to(torch.uint8)], tmp_path / "d")
    with pytest.raises(ValueError, match="at least one batch"):
        vqt.extract([], tmp_path / "e")
