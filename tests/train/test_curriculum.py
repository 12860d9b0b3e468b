"""The published counts, and what each order does."""

import pytest
import torch

from vistok.train.curriculum import CurriculumSampler, SoftmaxSampler, task_probabilities


@pytest.mark.parametrize(
    ("sets", "length", "reasoning"), [((20_000, 1000), 200_000, 90_000), ((5000, 500), 50_000, 22_500)]
)
def test_the_published_sizes_give_the_published_counts(sets, length, reasoning):
    sampler = CurriculumSampler(sets)
    indices = torch.tensor(list(sampler))
    assert len(sampler) == len(indices) == length
    assert int((indices >= sets[0]).sum()) == sum(sampler.reasoning) == reasoning
    assert (indices[indices >= sets[0]].bincount()[sets[0] :] == reasoning // sets[1]).all()


def test_an_epoch_generates_first_and_draws_without_replacement():
    sampler = CurriculumSampler((40, 5), fractions=(0.75,))
    epoch = sampler.epoch(0)
    assert len(epoch) == 40 and epoch[:30].max() < 40 and len(epoch[:30].unique()) == 30
    assert epoch[30:].tolist() == [*range(40, 45), *range(40, 45)]


def test_shuffled_epochs_hold_the_same_samples_mixed_and_seeds_differ():
    blocks, mixed = (CurriculumSampler((40, 5), order=order) for order in ("blocks", "shuffled_epoch"))
    for number in (3, 9):
        assert torch.equal(blocks.epoch(number).sort().values, mixed.epoch(number).sort().values)
        assert not torch.equal(blocks.epoch(number), mixed.epoch(number))
    assert list(blocks) == list(CurriculumSampler((40, 5))) != list(CurriculumSampler((40, 5), seed=1))


def test_a_reasoning_set_that_does_not_divide_the_rest_is_left_whole():
    sampler = CurriculumSampler((10, 4), fractions=(0.4,))
    assert sampler.generating == [4] and sampler.reasoning == [4] and len(sampler) == 8


def test_the_schedule_is_the_printed_one_for_sign_one_and_turned_around_for_the_other():
    start, late = (task_probabilities([1, 2, 3], step, 100) for step in (0, 100))
    weights = torch.softmax(-torch.tensor([1.0, 2.0, 3.0]), 0)
    assert torch.allclose(torch.tensor(start), weights)
    assert torch.allclose(torch.tensor(late), torch.softmax(-10 * torch.tensor([1.0, 2.0, 3.0]), 0))
    assert late[0] > start[0], "the literal formula sharpens on the easiest task"
    turned = task_probabilities([1, 2, 3], 100, 100, sign=-1)
    assert torch.allclose(torch.tensor(turned), torch.tensor(late).flip(0))


def test_a_softmax_sampler_moves_to_the_hard_set():
    sampler = SoftmaxSampler([10, 5], [0.0, 1.0], 2000, sign=-1, growth=4)
    indices = torch.tensor(list(sampler))
    assert len(sampler) == 2000 and indices.max() == 14 and list(sampler) == indices.tolist()
    hard = (indices >= 10).float()
    assert hard[1500:].mean() > hard[:500].mean() + 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CurriculumSampler((0, 5)), "two sets that hold something"),
        (lambda: CurriculumSampler((5, 5), order="mixed"), "got .* and 'mixed'"),
        (lambda: CurriculumSampler((5, 5), fractions=(1.5,)), r"fractions in 0..1, got \[1.5\]"),
        (lambda: CurriculumSampler((5, 5), total=9), "at most 5 draws of generation an epoch, got 9; lower total"),
        (lambda: task_probabilities([1.0], 0, 5, sign=0), "sign 1 or -1"),
        (lambda: SoftmaxSampler([5], [1.0, 2.0], 3), "one difficulty for each set"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_parts_of_a_sample_are_cut_off_as_the_authors_do():
    sampler = CurriculumSampler((15, 3))
    assert sampler.generating == [15, 13, 12, 10, 9, 7, 6, 4, 3, 1]
    assert sampler.reasoning == [0, 0, 3, 3, 6, 6, 9, 9, 12, 12]
