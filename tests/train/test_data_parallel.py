import subprocess
import sys

import pytest
import torch
from torch import nn

from vistok.train.data_parallel import average_gradients

SCRIPT = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from vistok.train.data_parallel import average_gradients, side_processes

def step(rank, out):
    torch.manual_seed(0)
    model, unused = nn.Linear(5, 3), nn.Linear(2, 2)
    data = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    share = data[rank * 4 : rank * 4 + 4] if dist.is_initialized() else data
    model(share).square().mean().backward()
    norm = average_gradients([*model.parameters(), *unused.parameters()], clip=0.1)
    if rank == 0:
        torch.save([norm, unused.weight.grad, *(p.grad for p in model.parameters())], out)
    elif "--fail" in sys.argv:
        raise ZeroDivisionError("planted")

if __name__ == "__main__":
    with side_processes(int(sys.argv[1]), step, sys.argv[2]):
        step(0, sys.argv[2])
"""


def run(tmp_path, world, *options):
    script, out = tmp_path / "script.py", tmp_path / f"{world}.pt"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(world), str(out), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120), out


@pytest.mark.slow
def test_two_processes_with_half_the_data_each_have_the_gradient_of_all_of_it(tmp_path):
    found = []
    for world in (1, 2):
        ended, out = run(tmp_path, world)
        assert ended.returncode == 0, ended.stderr
        found.append(torch.load(out))
    (norm, unused, *gradients), (norm_of_two, unused_of_two, *gradients_of_two) = found
    assert unused is None and unused_of_two is None
    assert norm_of_two == pytest.approx(norm, rel=1e-5)
    for one, two in zip(gradients, gradients_of_two, strict=True):
        torch.testing.assert_close(two, one)


@pytest.mark.slow
def test_the_error_of_a_side_process_is_raised_in_the_first(tmp_path):
    ended, _ = run(tmp_path, 2, "--fail")
    assert ended.returncode != 0 and "planted" in ended.stderr


def test_gradients_are_clipped_and_the_norm_before_is_returned():
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert average_gradients([parameter], clip=1.0) == pytest.approx(5)
    torch.testing.assert_close(parameter.grad, torch.tensor([0.6, 0.8]))
