import numpy as np
import pytest
import torch
from PIL import Image

from vistok.data.samples import sample_path
from vistok.metrics.image_codecs import to_picture
from vistok.metrics.patch_pca import PatchPca


@pytest.fixture
def folder(tmp_path):
    for seed, (height, width) in enumerate([(41, 70), (64, 33)]):
        to_picture(smooth(height, width, seed)).save(tmp_path / f"{seed}.png")
    return tmp_path


def smooth(height, width, seed):
    coarse = torch.rand(1, 3, height // 4, width // 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")[0].clamp(0, 1)


def test_it_is_the_pca_of_all_patches_of_the_folder(folder):
    rows = []
    for path in sorted(folder.iterdir()):
        pixels = np.asarray(Image.open(path), dtype=np.float64) / 255
        height, width = pixels.shape[0] // 4 * 4, pixels.shape[1] // 4 * 4
        cut = pixels[:height, :width].reshape(height // 4, 4, width // 4, 4, 3)
        rows.append(cut.transpose(0, 2, 4, 1, 3).reshape(-1, 48))
    rows = np.concatenate(rows)
    _, _, directions = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    image = smooth(16, 16, 9)[None]
    patches = image[0].double().reshape(3, 4, 4, 4, 4).permute(1, 3, 0, 2, 4).reshape(16, 48).numpy()
    expected = (patches - rows.mean(0)) @ directions[:5].T @ directions[:5] + rows.mean(0)
    found = PatchPca.fit(folder, components=5, patch=4, scales=(1024,))(image)
    found = found[0].double().reshape(3, 4, 4, 4, 4).permute(1, 3, 0, 2, 4).reshape(16, 48).numpy()
    np.testing.assert_allclose(found, expected.clip(0, 1), atol=1e-6)


def test_all_components_give_the_image_back_at_any_size(folder):
    image = smooth(21, 30, 3)[None]
    torch.testing.assert_close(PatchPca.fit(folder, components=48, patch=4)(image), image, atol=1e-5, rtol=0)


def test_more_components_reconstruct_better(folder):
    image = smooth(32, 32, 4)[None]
    errors = [float((PatchPca.fit(folder, k)(image) - image).square().mean()) for k in (1, 4, 16, 64)]
    assert errors == sorted(errors, reverse=True)


def test_pictures_are_reduced_to_every_scale_they_exceed(tmp_path):
    (tmp_path / "coffee.png").write_bytes(sample_path("coffee").read_bytes())
    one, both = PatchPca.fit(tmp_path, scales=(128,)), PatchPca.fit(tmp_path, scales=(1024, 256, 128))
    other = PatchPca.fit(tmp_path, scales=(256,))
    assert not torch.allclose(both.mean, one.mean, atol=1e-9)
    pixels = {side: (side // 8) * (round(600 * side / 400) // 8) for side in (128, 256)}
    expected = (pixels[128] * one.mean + pixels[256] * other.mean) / sum(pixels.values())
    torch.testing.assert_close(both.mean, expected)


def test_a_folder_without_a_patch_is_refused(tmp_path):
    Image.new("RGB", (7, 7)).save(tmp_path / "dot.png")
    with pytest.raises(ValueError, match="at least two patches of 8 px"):
        PatchPca.fit(tmp_path)
