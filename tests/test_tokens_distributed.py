"""TokenTensor through DistributedDataParallel: two gloo processes get the gradients of one over the whole batch.

An output type that pytree does not know would leave the ranks with different gradients under `static_graph`, silently.
"""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vistok.tokens import Selection, TokenSpec, TokenTensor

STEPS, RANKS, ITEMS = 3, 2, 6
Gradients = dict[str, list[Tensor]]


class Model(nn.Module):
    """Takes and gives tokens; two of its three slots are kept by a learned score."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.mix, self.head = nn.Linear(3, 3), nn.Linear(3, 2)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, tokens: TokenTensor) -> TokenTensor:
        assert tokens.embeds is not None
        embeds = self.mix(tokens.embeds).tanh()
        mixed = tokens.replace(embeds=embeds)
        norms = embeds.norm(dim=2).masked_fill(~mixed.mask, -1)
        kept = mixed.select(Selection(norms.topk(2, dim=1).indices.sort(dim=1).values))
        return kept.replace(embeds=self.head(kept.embeds))


def batch(step: int) -> TokenTensor:
    generator = torch.Generator().manual_seed(step)
    return TokenTensor(
        TokenSpec("toy"),
        embeds=torch.randn(ITEMS, 3, 3, generator=generator),
        lengths=torch.tensor([3, 1, 2, 3, 1, 3]),
    )


def train(model: nn.Module, rows: slice) -> Gradients:
    """Gradients of each step of SGD on the mean over the rows of each batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradients: Gradients = {}
    for step in range(STEPS):
        optimizer.zero_grad()
        out: TokenTensor = model(batch(step)[rows])
        assert out.embeds is not None
        (out.embeds.square().sum(2) * out.mask).sum(1).mean().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            gradients.setdefault(name.removeprefix("module."), []).append(parameter.grad.clone())
        optimizer.step()
    return gradients


def work(rank: int, folder: Path, static_graph: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS, timeout=timedelta(seconds=60)
    )
    share = ITEMS // RANKS
    model = DistributedDataParallel(Model(), static_graph=static_graph)
    gradients = train(model, slice(rank * share, (rank + 1) * share))
    torch.save(gradients, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("static_graph", [True, False])
def test_two_processes_get_the_gradients_of_one(
    static_graph: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1])  # so that a spawned process finds this file's functions
    mp.spawn(work, args=(tmp_path, static_graph), nprocs=RANKS)  # type: ignore[attr-defined,no-untyped-call]
    whole = train(Model(), slice(None))
    for rank in range(RANKS):
        gradients = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        assert gradients.keys() == whole.keys()
        for name, expected in whole.items():
            assert expected[0].abs().sum() > 0
            torch.testing.assert_close(gradients[name], expected, rtol=1e-5, atol=1e-6)
