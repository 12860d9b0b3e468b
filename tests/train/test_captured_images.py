import pytest
import timm
import torch

from vistok.readouts.vqt import VQT
from vistok.train.captured_images import CapturedImages


@pytest.fixture(scope="module")
def vqt() -> VQT:
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=16, depth=2, embed_dim=16, num_heads=2, num_classes=0
    )
    return VQT(vit, 2).eval()


def test_any_rows_read_as_their_images_do(vqt: VQT) -> None:
    images = torch.rand(7, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    captured = CapturedImages(vqt, images, batch=3)
    assert len(captured) == 7
    ids = torch.tensor([6, 0, 3])
    found, expected = vqt.read(captured.rows(ids)), vqt(images[ids])
    torch.testing.assert_close(found.features, expected.features)
    torch.testing.assert_close(found.pooled, expected.pooled)
    other = VQT(vqt.vit, 5, readout="mean").eval()
    torch.testing.assert_close(other.read(captured.rows(ids)).features, other(images[ids]).features)


def test_without_blocks_the_pooled_feature_is_left_and_the_original_keeps_all(vqt: VQT) -> None:
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    captured = CapturedImages(vqt, images)
    bare = captured.without_blocks()
    assert bare.all.kept == () and len(captured.all.kept) == 2
    assert torch.equal(bare.rows(torch.tensor([2])).pooled, captured.rows(torch.tensor([2])).pooled)


def test_no_images_are_refused(vqt: VQT) -> None:
    with pytest.raises(ValueError, match="at least one"):
        CapturedImages(vqt, torch.empty(0, 3, 32, 32))
