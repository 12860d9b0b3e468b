import json
import pickle
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from vistok.data import iterate
from vistok.data.collate import packed, padded
from vistok.data.store import TokenStore

from .store_fixtures import write_store

SAMPLES = 23


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> TokenStore:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 9, (SAMPLES,), generator=generator).tolist()
    return write_store(tmp_path_factory.mktemp("made") / "s", [lengths[:10], [], lengths[10:14], lengths[14:]])


def numbers(batch) -> list[int]:
    """Which samples a padded batch or a single sample holds."""
    ids = batch["ids"] if isinstance(batch, dict) else batch.indices
    return ids[:, 0].tolist()


def drain(stream) -> list[int]:
    return [number for batch in stream for number in numbers(batch)]


def test_samples_come_one_by_one_in_the_order_of_the_store(store):
    assert drain(store.iter()) == list(range(SAMPLES))
    for at, item in enumerate(store.iter()):
        assert item.spec == store[at].spec and torch.equal(item.indices, store[at].indices)


def test_batches_are_filled_by_samples_and_the_last_may_be_smaller(store):
    batches = list(store.iter(5, collate=padded()))
    assert [len(batch["lengths"]) for batch in batches] == [5, 5, 5, 5, 3]
    assert [number for batch in batches for number in numbers(batch)] == list(range(SAMPLES))


def test_batches_are_filled_up_to_max_tokens_but_never_over(store):
    lengths = store.lengths.tolist()
    batches = [numbers(batch) for batch in store.iter(max_tokens=12, collate=padded())]
    assert sum(batches, []) == list(range(SAMPLES))
    for batch, following in zip(batches, batches[1:] + [[]], strict=True):
        tokens = sum(lengths[at] for at in batch)
        assert tokens <= 12 and (not following or tokens + lengths[following[0]] > 12)
    assert all(len(batch) <= 2 for batch in map(numbers, store.iter(2, max_tokens=12, collate=padded())))


def test_without_a_collate_batches_are_token_tensors(store):
    batches = list(store.iter(4))
    assert len(batches) == 6 and [len(batch) for batch in batches] == [4, 4, 4, 4, 4, 3]
    assert batches[1].check().indices[:, 0].tolist() == [4, 5, 6, 7]


def test_a_sample_that_alone_is_too_long_is_named(store):
    longest = int(store.lengths.argmax())
    with pytest.raises(ValueError, match=rf"max_tokens=7, sample {longest} \(k{longest:02d}\) has 8"):
        store.iter(max_tokens=7, collate=packed())


def test_shuffling_depends_on_seed_and_epoch_only(store):
    orders = {
        (seed, epoch): drain(store.iter(shuffle=True, seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)
    }
    assert all(sorted(order) == list(range(SAMPLES)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 4
    assert drain(store.iter(3, shuffle=True, seed=1, epoch=1, collate=padded())) == orders[1, 1]


def test_one_stream_goes_through_the_epochs(store):
    stream = store.iter(shuffle=True, seed=3)
    for epoch in range(3):
        assert stream.epoch == epoch
        assert drain(stream) == drain(store.iter(shuffle=True, seed=3, epoch=epoch))


SETTINGS = {
    "batch": st.none() | st.integers(1, 6),
    "max_tokens": st.none() | st.integers(8, 40),
    "shuffle": st.booleans(),
    "world": st.integers(1, 4),
}


def options(batch, max_tokens, shuffle) -> dict:
    collate = padded() if batch or max_tokens else None
    return {"batch": batch, "max_tokens": max_tokens, "shuffle": shuffle, "seed": 5, "collate": collate}


@settings(max_examples=25, deadline=None)
@given(**SETTINGS)
def test_over_all_ranks_every_sample_comes_exactly_once(store, batch, max_tokens, shuffle, world):
    given_ = options(batch, max_tokens, shuffle)
    found = [drain(store.iter(**given_, rank=rank, world=world)) for rank in range(world)]
    assert sorted(sum(found, [])) == list(range(SAMPLES))
    if max_tokens is None and batch is None:
        order = drain(store.iter(**given_))
        assert found == [order[rank::world] for rank in range(world)]
        assert max(map(len, found)) - min(map(len, found)) <= 1


@settings(max_examples=40, deadline=None)
@given(**SETTINGS, after=st.integers(0, 8), other_world=st.integers(1, 4))
def test_a_run_that_was_stopped_goes_on_exactly_with_any_number_of_ranks(
    store, batch, max_tokens, shuffle, world, after, other_world
):
    given_ = options(batch, max_tokens, shuffle)
    seen, states = [], []
    for rank in range(world):
        stream = store.iter(**given_, rank=rank, world=world)
        handed_out = list(islice(stream, after))
        seen += [number for one in handed_out for number in numbers(one)]
        if len(handed_out) == after:
            states.append(stream.state_dict())
    if not states:
        return
    state = json.loads(json.dumps(states[0]))
    assert all(other == state for other in states)
    rest = [store.iter(**given_, rank=rank, world=other_world, state=state) for rank in range(other_world)]
    assert sorted(seen + sum(map(drain, rest), [])) == list(range(SAMPLES))
    if world == other_world == 1:
        assert seen + drain(store.iter(**given_, state=state)) == drain(store.iter(**given_))


def test_the_state_counts_what_was_handed_out_not_what_was_read_ahead(store):
    stream = store.iter(2, shuffle=True, world=3, collate=padded())
    assert stream.state_dict()["samples"] == 0
    for step, _ in zip((6, 12, 18, 23), stream, strict=False):
        assert stream.state_dict()["samples"] == step


def test_samples_are_read_together_but_only_so_many_bytes_of_them(store, monkeypatch):
    together = []
    read = TokenStore.__getitems__
    monkeypatch.setattr(TokenStore, "__getitems__", lambda self, at: together.append(len(at)) or read(self, at))
    assert drain(store.iter(2, collate=padded())) == list(range(SAMPLES)) and together == [SAMPLES]
    together.clear()
    monkeypatch.setattr(iterate, "_AHEAD_BYTES", 1)
    assert drain(store.iter(2, collate=padded())) == list(range(SAMPLES)) and max(together) == 2


def test_a_stream_that_was_left_goes_on_where_it_was(store):
    stream = store.iter()
    first = [numbers(item)[0] for item in islice(stream, 5)]
    assert first + drain(stream) == list(range(SAMPLES))


def test_the_state_of_a_finished_epoch_leads_into_the_next(store):
    stream = store.iter(shuffle=True)
    for _ in stream:
        last = stream.state_dict()
    after = stream.state_dict()
    assert (last["epoch"], last["samples"], after["epoch"], after["samples"]) == (0, SAMPLES, 1, 0)
    resumed = store.iter(shuffle=True, state=last)
    assert drain(resumed) == [] and drain(resumed) == drain(store.iter(shuffle=True, epoch=1))
    assert drain(store.iter(shuffle=True, state=after)) == drain(store.iter(shuffle=True, epoch=1))


def test_a_state_that_does_not_belong_here_is_refused(store, tmp_path):
    state = store.iter(shuffle=True, seed=1).state_dict()
    with pytest.raises(ValueError, match="state of seed 2, got one of 1"):
        store.iter(shuffle=True, seed=2, state=state)
    with pytest.raises(ValueError, match="state of shuffle False, got one of True"):
        store.iter(seed=1, state=state)
    lengths = store.lengths.tolist()
    others = [write_store(tmp_path / "plan", [lengths], plan="other"), write_store(tmp_path / "less", [lengths[:-1]])]
    for other in others:
        with pytest.raises(ValueError, match="state of store"):
            other.iter(shuffle=True, seed=1, state=state)
    for change in ({"samples": SAMPLES + 1}, {"samples": "3"}, {"epoch": -1}):
        with pytest.raises(ValueError, match="expected a state of epoch >= 0 with 0..23 samples"):
            store.iter(shuffle=True, seed=1, state=state | change)
    with pytest.raises(ValueError, match="expected a state with store, shuffle"):
        store.iter(state={"samples": 3})


@pytest.mark.parametrize(
    ("settings_", "said"),
    [
        ({"batch": 0}, "batch >= 1, got 0"),
        ({"max_tokens": 0}, "max_tokens >= 1"),
        ({"seed": -1}, "seed >= 0"),
        ({"epoch": -1}, "epoch >= 0"),
        ({"world": 0}, "world >= 1"),
        ({"rank": 2, "world": 2}, r"a rank in 0..1 \(world=2\), got 2"),
        ({"rank": -1}, "a rank in"),
        ({"collate": padded()}, "batch or max_tokens beside collate"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(store, settings_, said):
    with pytest.raises(ValueError, match=said):
        store.iter(**settings_)


def test_an_empty_store_gives_nothing(tmp_path):
    empty = write_store(tmp_path / "s", [[], []])
    for stream in (empty.iter(), empty.iter(3, shuffle=True, collate=padded()), empty.iter(max_tokens=1)):
        assert list(stream) == []


def test_a_data_loader_in_this_process_takes_a_stream(store):
    stream = store.iter(5, shuffle=True, collate=padded())
    assert drain(DataLoader(stream, batch_size=None)) == drain(store.iter(shuffle=True))


class Refusal:
    """A data set whose item is what a stream says in the process that asks for it."""

    def __init__(self, stream) -> None:
        self.stream = stream

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> str:
        try:
            return f"gave {next(iter(self.stream))}"
        except ValueError as error:
            return str(error)


def test_worker_processes_are_refused_instead_of_giving_samples_twice(store):
    # An error that leaves a worker of an IterableDataset costs five seconds of torch's time.
    [said] = DataLoader(Refusal(store.iter()), batch_size=None, num_workers=1)
    assert "give num_workers=0, or DataLoader(store, sampler=...)" in said


def test_a_stream_pickles_with_its_state(store):
    stream = store.iter(5, shuffle=True, collate=padded())
    first = numbers(next(iter(stream)))
    assert first + drain(pickle.loads(pickle.dumps(stream))) == drain(store.iter(shuffle=True))
