"""Means over processes: without any, as they are; two with other counts, those of one process with all vectors."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vistok.ops.process_mean import process_mean

_WORKER = """
import sys
from pathlib import Path
import torch
import vistok
from vistok.ops.process_mean import process_mean

rank, store, out = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
data = torch.randn(2, 60, 6, generator=torch.Generator().manual_seed(5))
for name, settings in torch.load(sys.argv[4]).items():
    torch.manual_seed(0)
    quantizer = vistok.quantizer(name, **settings).train()
    found = []
    for counts in ((60, 60), (60, 20), (0, 60)):
        z = data[rank, : counts[rank]].clone().requires_grad_()
        quantizer.zero_grad()
        loss = quantizer(z).loss
        loss.backward()
        found.append({"loss": loss.detach(), "z": z.grad, **{k: p.grad for k, p in quantizer.named_parameters()}})
    torch.save(found, out.with_name(f"{rank}-{name}.pt"))
mean = process_mean(torch.tensor([1.0, 3.0][rank]), [3, 1][rank])
torch.save(mean, out.with_name(f"{rank}-mean.pt"))
torch.distributed.destroy_process_group()
"""
_QUANTIZERS = {
    "ibq": {"dim": 6, "codebook_size": 50, "temperature": 0.5, "entropy_weight": 1.0},
    "lfq": {"dim": 6, "temperature": 2.0, "entropy_weight": 1.0},
    "vq_learned": {"dim": 6, "codebook_size": 50, "temperature": 0.5, "entropy_weight": 1.0, "diversity_weight": 1.0},
}


def test_one_process_gets_its_own_mean_back() -> None:
    mean = torch.rand(4, requires_grad=True)
    assert process_mean(mean, 7) is mean


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, in_two_processes: Callable[..., list[Path]]) -> Path:
    """What two processes saved: losses and gradients of every quantizer, each with its own vectors."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save(_QUANTIZERS, folder / "settings.pt")
    in_two_processes(_WORKER, folder, folder / "settings.pt")
    return folder


@pytest.mark.slow
def test_processes_with_other_counts_get_the_mean_over_all_vectors(folder: Path) -> None:
    assert [float(torch.load(folder / f"{rank}-mean.pt")) for rank in range(2)] == [1.5, 1.5]


@pytest.mark.slow
@pytest.mark.parametrize("name", _QUANTIZERS)
def test_two_processes_average_to_the_loss_and_gradient_of_one_with_both_halves(folder: Path, name: str) -> None:
    import vistok

    first, second = (torch.load(folder / f"{rank}-{name}.pt") for rank in range(2))
    data = torch.randn(2, 60, 6, generator=torch.Generator().manual_seed(5))
    torch.manual_seed(0)
    quantizer = vistok.quantizer(name, **_QUANTIZERS[name]).train()
    z = data.flatten(0, 1).clone().requires_grad_()
    out = quantizer(z)
    out.loss.backward()
    torch.testing.assert_close((first[0]["loss"] + second[0]["loss"]) / 2, out.loss.detach())
    torch.testing.assert_close(torch.cat([first[0]["z"], second[0]["z"]]) / 2, z.grad)
    for key, parameter in quantizer.named_parameters():
        torch.testing.assert_close((first[0][key] + second[0][key]) / 2, parameter.grad)
    local = vistok.quantizer(name, **_QUANTIZERS[name]).train()
    local.load_state_dict(quantizer.state_dict())
    assert not torch.allclose(local(data[0]).loss, first[0]["loss"], atol=1e-3)  # its own vectors alone say otherwise


@pytest.mark.slow
@pytest.mark.parametrize("name", _QUANTIZERS)
def test_a_process_without_vectors_takes_part_and_changes_nothing(folder: Path, name: str) -> None:
    import vistok

    first, second = (torch.load(folder / f"{rank}-{name}.pt")[2] for rank in range(2))
    data = torch.randn(2, 60, 6, generator=torch.Generator().manual_seed(5))
    torch.manual_seed(0)
    quantizer = vistok.quantizer(name, **_QUANTIZERS[name]).train()
    torch.testing.assert_close(second["loss"], quantizer(data[1]).loss.detach())
    assert all(bool(value.isfinite().all()) for value in first.values() if value is not None)
