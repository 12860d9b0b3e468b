import json
import pickle
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.data.batching import FixedBatches, LengthBuckets, PackedBatches
from vistok.data.collate import packed, padded
from vistok.data.mixed_stream import MixedStream
from vistok.data.mixture import Draw
from vistok.data.store import TokenStore

from .store_fixtures import write_store

SIZES = (23, 9, 14)
WAYS = st.one_of(
    st.builds(FixedBatches, st.integers(1, 9)),
    st.builds(LengthBuckets, st.integers(1, 7), st.integers(1, 4)),
    st.builds(PackedBatches, st.integers(8, 60)),
)
EVEN = FixedBatches(4)


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> list[TokenStore]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for number, size in enumerate(SIZES):
        lengths = torch.randint(1, 9, (size,), generator=generator).tolist()
        root = tmp_path_factory.mktemp("mixed") / str(number)
        made.append(write_store(root, [lengths[:5], [], lengths[5:]], plan=f"h{number}"))
    return made


def drawn(stream: MixedStream, steps: int | None = None) -> list[Draw]:
    return [draw for portion in islice(stream, steps) for draw in portion.draws]


def epoch_of(stream: MixedStream, epoch: int) -> list[Draw]:
    return sorted(stream.mixture.epoch(epoch).at(at) for at in range(len(stream.mixture)))


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(1, 3),
    weights=st.none() | st.lists(st.sampled_from([0.2, 1, 1.5]), min_size=3, max_size=3),
    way=WAYS,
    seed=st.integers(0, 5),
    epoch=st.integers(0, 2),
    worlds=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
    stops=st.tuples(st.integers(0, 12), st.integers(0, 12)),
)
def test_a_run_stopped_twice_and_gone_on_with_other_worlds_sees_every_draw_of_the_epoch_once(
    stores, count, weights, way, seed, epoch, worlds, stops
):
    options = {"weights": weights and weights[:count], "seed": seed, "epoch": epoch, "samples": None}
    seen: list[Draw] = []
    state = None
    for world, stop in zip(worlds, (*stops, None), strict=True):
        states = []
        for rank in range(world):
            stream = MixedStream(stores[:count], way, **options, rank=rank, world=world)
            if state is not None:
                stream.load_state_dict(state)
            seen += drawn(stream, stop)
            states.append(stream.state_dict())
        assert all(other == states[0] for other in states)
        state = json.loads(json.dumps(states[0]))
        if state["epoch"] > epoch:
            break
    assert sorted(seen) == epoch_of(stream, epoch)


@settings(max_examples=12, deadline=None)
@given(way=WAYS, world=st.integers(2, 4))
def test_a_global_batch_is_the_same_whatever_the_world(stores, way, world):
    alone = list(MixedStream(stores, way, weights=[1, 2, 1]))
    ranks = [list(MixedStream(stores, way, weights=[1, 2, 1], rank=rank, world=world)) for rank in range(world)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert {part.samples for part in parts} == {whole.samples} == {len(whole.draws)}
        assert [part.draws for part in parts] == [whole.draws[rank::world] for rank in range(world)]
        assert [part.tokens is None for part in parts] == [not part.draws for part in parts]


def test_tokens_are_those_of_the_draws(stores):
    for portion in MixedStream(stores, FixedBatches(5), collate=padded(), seed=2):
        for place, draw in enumerate(portion.draws):
            ids = portion.tokens["ids"][place, : portion.tokens["lengths"][place]]
            assert torch.equal(ids, stores[draw.store][draw.sample].indices[0])


def test_packed_portions_share_a_token_budget_evenly_and_attend_to_their_own_sample_alone(stores):
    world, budget = 2, 40
    streams = [
        MixedStream(stores, PackedBatches(budget), collate=packed(), rank=rank, world=world) for rank in range(world)
    ]
    heads = torch.randn(900, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    full = 0
    for portions in zip(*streams, strict=True):
        tokens = [len(portion.tokens["values"]) for portion in portions if portion.tokens]
        longest = max(portion.tokens["max_seqlen"] for portion in portions if portion.tokens)
        assert sum(tokens) <= budget and max(tokens) <= budget // world + longest
        full += sum(tokens) > budget - 8
        for portion in portions:
            values, bounds = portion.tokens["values"], portion.tokens["cu_seqlens"]
            assert bounds.dtype == torch.int32 and bounds[-1] == len(values)
            assert portion.tokens["max_seqlen"] == int(bounds.diff().max())
            numbers = [stores[draw.store][draw.sample].indices[0] for draw in portion.draws]
            alone = [_attended(heads, ids, torch.tensor([0, len(ids)])) for ids in numbers]
            together = _attended(heads, values, bounds)
            torch.testing.assert_close(together, torch.cat(alone))
    assert full >= len(streams[0]) - 1


def _attended(heads: torch.Tensor, ids: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    """What varlen attention computes from values and cu_seqlens, by a mask."""
    sample = torch.bucketize(torch.arange(len(ids)), bounds[1:], right=True)
    query, key, value = (heads[ids, part].transpose(0, 1) for part in range(3))
    mask = sample[:, None] == sample
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, mask).transpose(0, 1)


def test_one_stream_goes_through_the_epochs_and_a_finished_one_leads_into_the_next(stores):
    stream = MixedStream(stores, EVEN, weights=[1, 1, 1], seed=4)
    for epoch in range(3):
        assert stream.epoch == epoch
        assert sorted(drawn(stream)) == epoch_of(stream, epoch)
    last = MixedStream(stores, EVEN, weights=[1, 1, 1], seed=4)
    steps = len(last)
    iterator = iter(last)
    for _ in range(steps):
        next(iterator)
    resumed = MixedStream(stores, EVEN, weights=[1, 1, 1], seed=4)
    resumed.load_state_dict(last.state_dict())
    assert drawn(resumed) == [] and sorted(drawn(resumed)) == epoch_of(stream, 1)


def test_keys_and_rows_are_those_of_the_draw(stores):
    stream = MixedStream(stores, EVEN)
    draw = next(iter(stream)).draws[0]
    assert stream.key(draw) == stream.row(draw)["key"] == f"k{draw.sample:02d}"


def test_a_stream_pickles_with_its_state(stores):
    stream = MixedStream(stores, EVEN, weights=[1, 2, 3])
    first = drawn(stream, 3)
    rest = pickle.loads(pickle.dumps(stream))
    assert sorted(first + drawn(rest)) == epoch_of(stream, 0)


def test_a_state_that_does_not_belong_here_is_refused(stores):
    state = MixedStream(stores, EVEN, weights=[1, 1, 1], seed=1).state_dict()
    others = {
        "stores": MixedStream(stores[::-1], EVEN, weights=[1, 1, 1], seed=1),
        "draws": MixedStream(stores, EVEN, weights=[1, 1, 3], seed=1),
        "batching": MixedStream(stores, LengthBuckets(4), weights=[1, 1, 1], seed=1),
        "seed": MixedStream(stores, EVEN, weights=[1, 1, 1], seed=2),
    }
    for name, other in others.items():
        with pytest.raises(ValueError, match=f"state of {name} "):
            other.load_state_dict(state)
    here = MixedStream(stores, EVEN, weights=[1, 1, 1], seed=1)
    for change in ({"batches": 999}, {"batches": "1"}, {"epoch": -1}):
        with pytest.raises(ValueError, match="epoch >= 0 and batches of that epoch"):
            here.load_state_dict(state | change)
    with pytest.raises(ValueError, match="expected a state with stores"):
        here.load_state_dict({"batches": 1})


def test_what_is_out_of_range_is_refused_by_name(stores):
    for options in ({"rank": 2, "world": 2}, {"rank": -1}, {"epoch": -1}):
        with pytest.raises(ValueError, match="expected epoch >= 0 and a rank in"):
            MixedStream(stores, EVEN, **options)
    with pytest.raises(ValueError, match=r"k\d\d: packed batches: expected samples of at most max_tokens=7"):
        next(iter(MixedStream(stores, PackedBatches(7))))


def test_worker_processes_are_refused(stores):
    class Refusal(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> str:
            try:
                return f"gave {next(iter(MixedStream(stores, EVEN)))}"
            except ValueError as error:
                return str(error)

    [said] = torch.utils.data.DataLoader(Refusal(), batch_size=None, num_workers=1)
    assert "give num_workers=0" in said
