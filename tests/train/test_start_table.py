"""New rows that start as sums of words learn faster than those that start at the mean (arXiv:2506.06607, on codes)."""

import pytest

from vistok.train.image_words import Training
from vistok.train.start_table import start_table

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def test_every_start_and_seed_has_a_row_and_equal_seeds_see_equal_batches(tmp_path):
    training = Training(
        out=str(tmp_path), model={"width": 16, "layers": 1, "heads": 2}, patch=32, codes=8, codebook_rounds=1,
        pictures=12, held_out=4, base_steps=1, steps=9, batch=2, rank=2,
    )  # fmt: skip
    rows = list(start_table(training, ("mean", "omp", "mean"), seeds=(3,), steps=1))
    assert [(row.start, row.seed, row.steps) for row in rows] == [("mean", 3, 1), ("omp", 3, 1), ("mean", 3, 1)]
    assert rows[0] == rows[2] and rows[0].before != rows[1].before


@pytest.mark.slow
def test_sums_of_words_are_ahead_of_the_mean_after_a_hundred_steps(tmp_path):
    training = Training(out=str(tmp_path), codes=128, pictures=400, held_out=50, base_steps=80, steps=200, batch=16)
    mean, omp = start_table(training, ("mean", "omp"), seeds=(0,))
    assert omp.after < mean.after < mean.before
