"""What each start promises about the rows it makes."""

import pytest
import torch

from vistok.lvlm import row_starts

VOCABULARY, WIDTH = 400, 24


@pytest.fixture
def old(generator):
    scales = torch.linspace(0.2, 2, WIDTH)
    return torch.randn(VOCABULARY, WIDTH, generator=generator) * scales + 3


def test_mean_rows_lie_at_the_mean_and_differ_a_little(old, generator):
    rows = row_starts.mean()(old, 50, generator)
    assert (rows - old.mean(0)).abs().max() < 0.01 and len(rows.unique(dim=0)) == 50


def test_normal_rows_have_the_spread_of_each_dimension(old, generator):
    rows = row_starts.normal()(old, 4000, generator)
    assert torch.allclose(rows.mean(0), old.mean(0), atol=0.15)
    assert torch.allclose(rows.std(0), old.std(0), rtol=0.1)


def test_mean_cov_rows_have_the_old_rows_covariance_scaled(old, generator):
    mixed = old @ torch.randn(WIDTH, WIDTH, generator=generator)
    rows = row_starts.mean_cov(scale=0.25)(mixed, 20_000, generator)
    error = torch.cov(rows.T) - 0.25 * torch.cov(mixed.T)
    assert error.norm() < 0.05 * torch.cov(mixed.T).norm()


def test_codebook_rows_have_the_old_spread_and_keep_who_is_near_whom(old, generator):
    codes = torch.randn(64, 5, generator=generator) * torch.tensor([5.0, 3, 2, 1, 0.5])
    rows = row_starts.codebook(codes)(old, 64, generator)
    spread = torch.linalg.svdvals(old - old.mean(0)) / VOCABULARY**0.5
    made = torch.linalg.svdvals(rows - rows.mean(0)) / 64**0.5
    assert torch.allclose(made[:5], spread[:5], rtol=1e-3) and made[5] < 1e-3
    near = torch.cdist(codes, codes).fill_diagonal_(torch.inf).argmin(1)
    apart = torch.cdist(rows, rows)
    share = (apart[torch.arange(64), near][:, None] <= apart).float().mean()
    assert share > 0.9


def test_more_code_dimensions_than_width_are_cut_to_the_strongest(old, generator):
    codes = torch.randn(30, 100, generator=generator)
    assert row_starts.codebook(codes)(old, 30, generator).shape == (30, WIDTH)


def test_sincos_rows_of_neighbouring_bins_are_nearer_than_those_of_distant_ones(old, generator):
    rows = row_starts.sincos(torch.linspace(0, 1, 64))(old, 64, generator)
    apart = torch.cdist(rows, rows)
    assert apart.diagonal(1).mean() < 0.5 * apart.diagonal(20).mean()
    assert apart[0, 32] < apart[0, 63] * 1.5 and len(rows.unique(dim=0)) == 64


def test_anchored_rows_are_the_sums_that_were_asked_for(old, generator):
    weights = torch.tensor([[1.0, 0, 0], [0, 0.5, -2]])
    rows = row_starts.anchored(weights, torch.tensor([7, 3, 11]))(old, 2, generator)
    assert torch.allclose(rows, torch.stack((old[7], 0.5 * old[3] - 2 * old[11])))


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (row_starts.codebook(torch.zeros(3, 2)), "codebook: expected one value for each of 4 new rows, got 3"),
        (row_starts.sincos(torch.zeros(5)), "sincos: expected one value for each of 4"),
        (row_starts.anchored(torch.zeros(4, 2), torch.tensor([0, VOCABULARY])), "anchors among 400 old rows"),
        (row_starts.anchored(torch.zeros(4, 3), torch.tensor([0, 1])), r"weights \[n, A\]"),
    ],
)
def test_a_start_for_another_number_of_rows_says_so(start, message, old, generator):
    with pytest.raises(ValueError, match=message):
        start(old, 4, generator)
