"""VQ against its formulas written out, and against what vector-quantize-pytorch does otherwise."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from vector_quantize_pytorch import VectorQuantize
from vector_quantize_pytorch.vector_quantize_pytorch import Codebook

from vistok.quantizers.vq import VQ


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def at(codes: Tensor, **settings: object) -> VQ:
    """A quantizer whose codebook is `codes` [K, D] and that never restarts a code."""
    quantizer = VQ(codes.shape[1], len(codes), **{"dead_code_threshold": 0.0, **settings})  # type: ignore[arg-type]
    quantizer.set_codebook(codes)
    return quantizer


def test_ids_codes_and_loss_by_hand() -> None:
    quantizer = at(torch.tensor([[0.0, 0.0], [4.0, 0.0]]), commitment_weight=0.5).eval()
    out = quantizer(torch.tensor([[1.0, 1.0], [3.0, 0.0], [2.0, 5.0]]))
    assert out.indices.tolist() == [0, 1, 0]  # the last one is as far from both: the lowest id wins
    assert out.embeds.tolist() == [[0.0, 0.0], [4.0, 0.0], [0.0, 0.0]]
    mean_square = (1 + 1 + 1 + 0 + 4 + 25) / 6
    assert float(out.stats["commitment_loss"]) == pytest.approx(mean_square)
    assert float(out.loss) == pytest.approx(0.5 * mean_square)


def test_one_moving_average_step_by_hand() -> None:
    quantizer = at(torch.tensor([[0.0], [10.0], [50.0]]), decay=0.75, eps=0.1).train()
    out = quantizer(torch.tensor([[1.0], [2.0], [9.0]]))
    assert out.embeds.flatten().tolist() == [0.0, 0.0, 10.0]  # the codes as they were before the step
    state = quantizer.library._codebook
    n = [0.75 + 0.25 * 2, 0.75 + 0.25 * 1, 0.75]
    m = [0.25 * (1 + 2), 0.75 * 10 + 0.25 * 9, 0.75 * 50]
    assert state.cluster_size[0].tolist() == pytest.approx(n)
    assert state.embed_avg[0].flatten().tolist() == pytest.approx(m)
    smoothed = [(size + 0.1) / (sum(n) + 3 * 0.1) * sum(n) for size in n]
    assert quantizer.codebook.flatten().tolist() == pytest.approx([a / b for a, b in zip(m, smoothed, strict=True)])


def test_a_step_equals_the_librarys_own_where_that_is_right() -> None:
    codes, z = randn(20, 4), randn(200, 4, seed=1)
    ours = at(codes, decay=0.9).train()
    theirs = VectorQuantize(dim=4, codebook_size=20, decay=0.9, rotation_trick=False, commitment_weight=0.25).train()
    theirs.load_state_dict(ours.library.state_dict())
    out = ours(z)
    embeds, ids, loss = theirs(z)
    assert torch.equal(out.indices, ids)
    torch.testing.assert_close((out.embeds, out.loss), (embeds, loss))
    torch.testing.assert_close(ours.library.state_dict(), theirs.state_dict())


def test_a_dead_code_restarts_at_a_vector_of_the_batch_with_fresh_statistics() -> None:
    quantizer = VQ(1, 3, decay=0.5, dead_code_threshold=0.7)
    quantizer.set_codebook(torch.tensor([[0.0], [10.0], [99.0]]))
    z = torch.tensor([[1.0], [2.0], [9.0], [11.0]])
    torch.manual_seed(0)
    quantizer.train()(z)
    state = quantizer.library._codebook  # the third code fell to n = 0.5
    assert float(state.embed[0, 2, 0]) in z.flatten().tolist()
    assert float(state.cluster_size[0, 2]) == pytest.approx(0.7)
    assert float(state.embed_avg[0, 2, 0]) == pytest.approx(0.7 * float(state.embed[0, 2, 0]))
    torch.testing.assert_close(quantizer.codebook[:2].flatten(), torch.tensor([1.0, 10.0]), rtol=1e-4, atol=1e-4)


def test_only_as_many_dead_codes_restart_as_there_are_vectors() -> None:
    quantizer = VQ(2, 10, decay=0.5, dead_code_threshold=0.9)
    quantizer.set_codebook(100 + randn(10, 2))
    before = quantizer.codebook
    quantizer.train()(randn(3, 2))
    assert int(((quantizer.codebook - before).abs() > 1).any(1).sum()) in (3, 4)  # and the winner moved a little


def test_cosine_compares_and_returns_unit_vectors() -> None:
    codes = torch.tensor([[5.0, 0.0], [0.0, 0.1]])
    quantizer = at(codes, metric="cosine").eval()
    z = torch.tensor([[0.01, 0.02], [300.0, 100.0]])
    out = quantizer(z)
    assert out.indices.tolist() == [1, 0]
    assert out.embeds.tolist() == [[0.0, 1.0], [1.0, 0.0]]
    units = z / z.norm(dim=1, keepdim=True)
    torch.testing.assert_close(out.stats["commitment_loss"], (units - out.embeds).square().mean())
    assert torch.equal(quantizer(1e4 * z).indices, out.indices)


def test_cosine_codes_stay_on_the_sphere_in_training() -> None:
    quantizer = VQ(4, 8, metric="cosine", decay=0.5).train()
    for seed in range(5):
        quantizer(3 * randn(100, 4, seed=seed))
    torch.testing.assert_close(quantizer.library._codebook.embed[0].norm(dim=1), torch.ones(8))


def test_rows_of_any_length_in_a_loaded_cosine_table_act_as_unit_vectors() -> None:
    quantizer = at(randn(16, 4), metric="cosine").eval()
    z = randn(100, 4, seed=1)
    expected = quantizer(z)
    quantizer.library._codebook.embed.mul_(torch.rand(1, 16, 1, generator=torch.Generator().manual_seed(2)) + 0.1)
    assert torch.equal(quantizer(z).indices, expected.indices)
    torch.testing.assert_close(quantizer(z).embeds, expected.embeds)


def test_the_gradient_setting_decides_in_training_and_eval_is_straight_through() -> None:
    z, codes = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    g = torch.tensor([[1.0, 5.0]])
    expected = {
        ("straight_through", True): [1.0, 5.0],
        ("rotation", True): [7.5, -1.5],
        ("rotation", False): [1.0, 5.0],
    }
    for (gradient, training), wanted in expected.items():
        x = z.clone().requires_grad_()
        out = at(codes, gradient=gradient).train(training)(x)
        assert torch.equal(out.embeds, codes)
        torch.testing.assert_close(torch.autograd.grad(out.embeds, x, g)[0], torch.tensor([wanted]))


def test_the_codebook_follows_its_data() -> None:
    centres = 5 * randn(8, 3)
    quantizer = at(centres + 0.5, decay=0.8).train()
    for seed in range(40):
        which = torch.randint(8, (256,), generator=torch.Generator().manual_seed(seed))
        quantizer(centres[which] + 0.05 * randn(256, 3, seed=seed + 1000))
    out = quantizer.eval()(centres)
    assert float(out.stats["usage"]) == 1.0
    torch.testing.assert_close(out.embeds, centres, rtol=0, atol=0.05)


def test_k_means_starts_the_codebook_once_and_with_statistics_that_hold_it() -> None:
    z = torch.cat([randn(50, 2) * 0.01 + 5, randn(30, 2) * 0.01 - 5])
    quantizer = VQ(2, 2, decay=1.0).train()
    torch.manual_seed(0)
    quantizer(z)
    means = torch.stack([z[:50].mean(0), z[50:].mean(0)])
    order = quantizer.codebook[:, 0].argsort(descending=True)
    torch.testing.assert_close(quantizer.codebook[order], means, rtol=1e-4, atol=1e-4)
    assert quantizer.library._codebook.cluster_size[0][order].tolist() == [50.0, 30.0]
    quantizer(torch.zeros(10, 2))  # decay 1: nothing but a second start could move the codes
    torch.testing.assert_close(quantizer.codebook[order], means, rtol=1e-4, atol=1e-4)


def test_k_means_leaves_empty_clusters_where_they_are_and_the_library_moves_them_to_zero() -> None:
    z = torch.tensor([[1.0], [1.0], [1.0], [5.0]])
    quantizer = VQ(1, 4, dead_code_threshold=0.0).train()
    quantizer(z)
    assert bool(torch.isclose(quantizer.codebook[..., None], z.flatten(), rtol=1e-4).any(-1).all())
    book = Codebook(1, 4, kmeans_init=True)
    book.init_embed_(z[None])
    assert bool((book.embed == 0).any())


def test_k_means_works_at_small_scales_where_the_library_collapses() -> None:
    z = 1e-6 * randn(400, 4)
    quantizer = VQ(4, 16, dead_code_threshold=0.0).train()
    quantizer(z)
    assert float(quantizer.eval()(z).stats["usage"]) == 1.0
    theirs = VectorQuantize(dim=4, codebook_size=16, kmeans_init=True).train()
    theirs(z)
    assert len(theirs(z)[1].unique()) < 4


def test_k_means_warns_of_a_first_batch_that_is_too_small() -> None:
    with pytest.warns(UserWarning, match="k-means starts 16 codes on only 5 vectors"):
        VQ(2, 16).train()(randn(5, 2))


def test_an_untrained_quantizer_encodes() -> None:
    assert len(VQ(4, 16).eval()(randn(200, 4)).indices.unique()) > 4


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3])
def test_every_code_encodes_to_itself(scale: float, training: bool, metric: str) -> None:
    codes = scale * randn(2000, 8)
    assert torch.equal(at(codes, metric=metric).train(training)(codes).indices, torch.arange(2000))


@pytest.mark.parametrize("training", [True, False])
def test_a_codebook_of_scale_one_over_k_works_and_the_librarys_search_fails_on_it(training: bool) -> None:
    codes = (torch.rand(16384, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1) / 16384
    quantizer = at(codes).train(training)
    theirs = VectorQuantize(dim=8, codebook_size=16384).train(training)
    theirs.load_state_dict(quantizer.library.state_dict())
    some = torch.arange(500)
    with torch.no_grad():
        clamped = theirs(codes[:500][None], freeze_codebook=True)[1]
    assert torch.equal(quantizer(codes).indices, torch.arange(16384))
    assert float((clamped == some).float().mean()) < 0.1


def test_eval_passes_the_gradient_on_and_the_library_does_not() -> None:
    quantizer = at(randn(16, 4)).eval()
    z = randn(10, 4, seed=1).requires_grad_()
    g = randn(10, 4, seed=2)
    assert torch.equal(torch.autograd.grad(quantizer(z).embeds, z, g)[0], g)
    assert not quantizer.library.eval()(z)[0].requires_grad


def test_nan_in_the_padding_leaves_the_codebook_whole_and_ruins_the_librarys() -> None:
    quantizer = at(randn(8, 4), decay=0.5).train()
    theirs = VectorQuantize(dim=4, codebook_size=8, decay=0.5).train()
    theirs.load_state_dict(quantizer.library.state_dict())
    mask = torch.arange(10) < torch.tensor([10, 4])[:, None]
    z = randn(2, 10, 4, seed=1).masked_fill(~mask[..., None], float("nan"))
    quantizer(z, mask)
    theirs(z, mask=mask)
    assert bool(torch.isfinite(quantizer.codebook).all())
    assert not bool(torch.isfinite(theirs.codebook).all())


class LargestTensor(TorchDispatchMode):
    """Records the most elements that any tensor made inside had."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


@pytest.mark.parametrize("training", [True, False])
def test_no_tensor_of_vectors_times_codes_is_made_and_the_library_makes_one(training: bool) -> None:
    quantizer, z = at(randn(9000, 2)).train(training), randn(1, 1500, 2, seed=1)
    with LargestTensor() as ours:
        quantizer(z)
    with LargestTensor() as theirs:
        quantizer.library(z)
    assert ours.numel <= 1024 * 4096 < 1500 * 9000 <= theirs.numel


_ENCODE = """
import resource
import torch
from vistok.quantizers.vq import VQ

torch.set_num_threads(1)
quantizer = VQ(8, 16384).eval()
z = torch.randn(65536, 8)
quantizer(z[:64])  # what is loaded or built at the first call is no part of it
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with torch.no_grad():
    quantizer(z)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["", "reference"])
def test_encoding_65536_vectors_in_16384_codes_grows_the_process_by_less_than_300_megabytes(backend: str) -> None:
    command = [sys.executable, "-c", _ENCODE]
    environment = {**os.environ, "VISTOK_OPS": backend} if backend else dict(os.environ)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    assert float(done.stdout) < 300


def test_an_imported_codebook_survives_the_first_step_and_the_librarys_setter_loses_it() -> None:
    codes, z = 5 + randn(16, 4), torch.zeros(1, 4)
    quantizer = VQ(4, 16, dead_code_threshold=0.0)
    quantizer.set_codebook(codes)
    quantizer.train()(z)
    assert float((quantizer.codebook - codes).abs().max()) < 0.2  # the one winner moved
    assert int(((quantizer.codebook - codes).abs() > 1e-3).any(1).sum()) == 1
    theirs = VectorQuantize(dim=4, codebook_size=16, decay=0.99).train()
    theirs.codebook = codes
    theirs(z[None])
    assert float((theirs.codebook - codes).abs().min()) > 1


def test_an_imported_codebook_is_not_replaced_by_k_means() -> None:
    quantizer = VQ(4, 16, decay=1.0, dead_code_threshold=0.0)
    quantizer.set_codebook(randn(16, 4))
    quantizer.train()(100 + randn(64, 4, seed=1))
    torch.testing.assert_close(quantizer.codebook, randn(16, 4), rtol=1e-3, atol=1e-4)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="expected metric in .* got 'l1'"):
        VQ(metric="l1")
    with pytest.raises(ValueError, match="gradient in .* got .*'gumbel'"):
        VQ(gradient="gumbel")
    with pytest.raises(ValueError, match="decay in 0..1"):
        VQ(decay=1.5)
    with pytest.raises(ValueError, match=r"expected finite codes \[4, 2\], got \[4, 3\]"):
        VQ(2, 4).set_codebook(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="expected finite codes"):
        VQ(2, 4).set_codebook(torch.full((4, 2), float("nan")))
