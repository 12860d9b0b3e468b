"""VQ, and residual VQ with dropout, in two processes: one codebook, no waiting for one another."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

_WORKER = """
import sys
from datetime import timedelta
import torch
import vistok

rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.manual_seed(0)
settings = {"method": "vq", "dim": 4, "codebook_size": 16, "decay": 0.8, "dead_code_threshold": 4.0}
quantizers = [  # built before the processes know of one another: the library would never synchronise these
    vistok.quantizer("vq", **{key: value for key, value in settings.items() if key != "method"}).train(),
    vistok.quantizer("residual", levels=3, quantizer=settings, quantize_dropout=True).train(),
    vistok.quantizer("residual", levels=3, quantizer=settings, shared=True).train(),
    vistok.quantizer("vq", dim=4, codebook_size=16, metric="cosine", decay=0.8, dead_code_threshold=4.0).train(),
]
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=120)
)
torch.manual_seed(100 + rank)
restarts = torch.zeros(len(quantizers))
for step in range(12):
    for place, quantizer in enumerate(quantizers):
        z = torch.randn(40 + 30 * rank, 4) + 3 * rank
        keep = torch.arange(len(z)) < (0 if step % 3 == 2 and rank == 0 else len(z))  # no vector here, dead codes there
        restarts[place] += quantizer(z, keep).stats["restarts"]
torch.distributed.barrier()
torch.save([*(quantizer.state_dict() for quantizer in quantizers), {"restarts": restarts}], out)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_with_different_data_keep_one_codebook_through_restarts_of_dead_codes(
    tmp_path: Path, in_two_processes: Callable[..., list[Path]]
) -> None:
    files = in_two_processes(_WORKER, tmp_path)
    first, second = (torch.load(file, weights_only=True) for file in files)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert bool((first[-1]["restarts"] > 0).all())  # the same number on both, or the comparison above had failed
    codebook = first[0]["library._codebook.embed"][0]
    # Codes of both halves of the data are there, so neither process kept to its own.
    assert float(codebook.mean(1).min()) < 0.5 and float(codebook.mean(1).max()) > 2.5
