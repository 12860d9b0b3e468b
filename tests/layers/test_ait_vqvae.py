"""Names, shapes and sizes of the published networks, and that the default start learns where the authors' does not."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vistok.layers.ait_vqvae import AitVqvae
from vistok.ops.code_usage import code_counts
from vistok.weights import load_weights, read_tensors

PUBLISHED: dict[str, tuple[dict[str, Any], int, int, int]] = {
    "depth": ({"downsample": 32}, 320, 10, 7_689_201),
    "masks": ({"downsample": 16, "use_norm": True}, 64, 4, 1_985_393),
}
SMALL: dict[str, Any] = {"downsample": 4, "codes": 16, "codebook_dim": 6, "hidden": 4, "blocks": 1}


def small(**options: Any) -> AitVqvae:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AitVqvae(**{**SMALL, **options})


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    settings, side, grid, parameters = PUBLISHED[name]
    with torch.device("meta"):
        model = AitVqvae(**settings)
    assert sum(value.numel() for value in model.parameters()) == parameters
    assert sum(value.numel() for value in model.state_dict().values()) == parameters + 131_200
    with torch.device("meta"):
        assert model.features(torch.empty(2, 1, side, side)).shape == (2, 512, grid, grid)
        assert model.decode_vectors(torch.empty(2, 512, grid, grid)).shape == (2, 1, side, side)


def test_names_are_the_authors_ones():
    with torch.device("meta"):
        names = AitVqvae(downsample=16).state_dict()
    convolutions = [f"encoder.{place}" for place in (0, 2, 4, 6, 10)]
    convolutions += [f"decoder.{place}" for place in (0, 4, 6, 8, 10, 12)]
    blocks = [f"{part}.net.{place}" for part in ("encoder.8", "encoder.9", "decoder.2", "decoder.3") for place in (0, 2, 4)]  # fmt: skip # noqa: E501
    expected = {f"{name}.{kind}" for name in convolutions + blocks for kind in ("weight", "bias")}
    expected |= {f"_vq_vae.{name}" for name in ("_embedding", "_ema_cluster_size", "_ema_w")}
    assert set(names) == expected
    assert names["_vq_vae._embedding"].shape == (128, 512)
    with torch.device("meta"):
        assert "_vq_vae._embedding.weight" in dict(AitVqvae(decay=0).named_parameters())


@pytest.mark.parametrize("block", ["v1", "v2"])
@pytest.mark.parametrize("settings", [{}, {"use_norm": True, "max_value": 5.0}, {"channels": 3}, {"decay": 0}])
def test_maps_become_ids_and_maps_again(block, settings, generator):
    model = small(block=block, **settings).eval()
    maps = torch.rand(3, model.channels, 16, 24, generator=generator)
    ids = model.encode(maps)
    assert ids.shape == (3, 4, 6) and ids.dtype == torch.int64
    with torch.no_grad():
        out = model(maps)
        torch.testing.assert_close(model.decode(ids), out.maps)
    assert torch.equal(out.quantized.indices, ids) and out.maps.shape == maps.shape


def test_use_norm_maps_to_the_networks_scale_and_back():
    model = small(use_norm=True, max_value=4.0).eval()
    plain = small().eval()
    maps = torch.full((1, 1, 8, 8), 3.0)
    assert torch.equal(model.features(maps), plain.features(torch.full((1, 1, 8, 8), 0.5)))
    ids = torch.zeros(1, 2, 2, dtype=torch.int64)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model.decode(ids), (plain.decode(ids) + 1) / 2 * 4.0)


def test_classes_are_predicted_as_numbers():
    model = small(out_channels=5, loss="cross_entropy")
    classes = torch.randint(5, (2, 1, 8, 8), generator=torch.Generator().manual_seed(0)).float()
    classes[0, 0, 0] = -1
    out = model(classes)
    out.loss.backward()
    assert out.maps.shape == (2, 1, 8, 8) and int(out.maps.max()) < 5 and out.maps.dtype == torch.int64


@pytest.mark.parametrize("loss", ["mse", "l1", "smooth_l1", "mse_above_zero", "silog"])
def test_every_loss_reaches_the_first_layer(loss):
    model = small(loss=loss, use_norm=loss != "silog")
    model(torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))).loss.backward()
    gradient = model.encoder[0].weight.grad
    assert isinstance(gradient, Tensor) and bool(gradient.isfinite().all()) and bool(gradient.any())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"downsample": 12}, "power of two"),
        ({"block": "v3"}, "block in"),
        ({"loss": "l3"}, "loss in"),
        ({"loss": "cross_entropy", "use_norm": True}, "class numbers"),
    ],
)
def test_settings_that_make_no_network_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        small(**wrong)


@pytest.mark.parametrize("shape", [(1, 1, 16, 18), (1, 3, 16, 16), (16, 16), (16,)])
def test_maps_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected maps \[B, 1, H, W\]"):
        small().encode(torch.zeros(shape))


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_files_of_the_authors_load_without_running_code(suffix, tmp_path):
    model, fresh = small(), small(init="official")
    path = tmp_path / f"vae{suffix}"
    tensors = model.state_dict()
    if suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in tensors.items()})
    else:
        torch.save(tensors, path)
    load_weights(fresh, path)
    assert all(torch.equal(value, tensors[name]) for name, value in fresh.state_dict().items())


def test_an_archive_that_holds_code_is_refused(tmp_path):
    np.savez(tmp_path / "vae.npz", encoder=np.array([print], dtype=object))
    with pytest.raises(ValueError, match="expected a whole file of plain tensors"):
        read_tensors(tmp_path / "vae.npz")


def plane_and_discs(number: int, side: int = 64) -> Tensor:
    """A tilted plane with two nearer discs, min-max to -1..1: [8, 1, side, side], another batch for each number."""
    draw = torch.Generator().manual_seed(number)
    rows, columns = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    tilt = torch.rand(8, 2, 1, 1, generator=draw)
    maps = tilt[:, 0] * rows + tilt[:, 1] * columns
    for _ in range(2):
        x, y, radius, value = torch.rand(4, 8, 1, 1, generator=draw)
        inside = (columns - x).square() + (rows - y).square() < (0.1 + 0.15 * radius).square()
        maps = torch.where(inside, 1 + value, maps)
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return ((maps - low) / (high - low) * 2 - 1)[:, None]


def trained(init: str, steps: int) -> tuple[int, float]:
    """Codes used over 16 fresh batches, and squared error there."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AitVqvae(downsample=8, codes=128, codebook_dim=64, hidden=8, init=init)
        optimizer = torch.optim.Adam(model.parameters(), 3e-4)
        for step in range(steps):
            optimizer.zero_grad()
            model.train()(plane_and_discs(step)).loss.backward()
            optimizer.step()
    counts, errors = torch.zeros(128, dtype=torch.int64), []
    with torch.no_grad():
        for number in range(16):
            maps = plane_and_discs(1_000_000 + number)
            out = model.eval()(maps)
            counts += code_counts(out.quantized.indices, 128)
            errors.append(float((out.maps - maps).square().mean()))
    return int((counts > 0).sum()), sum(errors) / len(errors)


@pytest.mark.slow
def test_the_default_start_uses_many_codes_and_the_authors_start_one():
    used, error = trained("kmeans", 300)
    assert used >= 8 and error < 0.05, (used, error)
    used, error = trained("official", 60)
    assert used == 1 and error > 0.1, (used, error)
