"""The measures of an adaptive tokenizer, on a model that spends as a perfect one would and on one that does not."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vistok.metrics.adaptive import (
    allocating,
    blurred,
    error_ratio,
    falling,
    promise,
    simpler_gets_fewer,
    smooth_and_textured,
)
from vistok.metrics.kinds_of_images import chessboards, gradients, kinds
from vistok.tokens import TokenSpec, TokenTensor


class Rows:
    """A token is one of 16 rows: kept rows come back, the others as grey. Halting keeps what is not grey enough."""

    budget = 16
    epsilons = (0.01, 0.05, 0.1, 0.2)

    def encode(self, images: Tensor, *, eps: Any = 0.0, budget: Any = None, halting: bool = True) -> TokenTensor:
        rows = images.permute(0, 2, 1, 3).flatten(2)
        lengths = torch.as_tensor(self.budget if budget is None else budget).expand(len(images)).clone()
        if halting:
            # Rows from the last one on whose loss together stays below eps, by a bound that is a bit too hopeful.
            loss = (rows - 0.5).abs().mean(2).flip(1).cumsum(1) / 16
            allowed = 1.1 * torch.as_tensor(eps).expand(len(images))
            lengths = 16 - (loss <= allowed[:, None]).sum(1)
        return TokenTensor(spec=TokenSpec("rows"), embeds=rows, lengths=lengths)

    def decode(self, tokens: TokenTensor) -> Tensor:
        assert tokens.embeds is not None
        rows = tokens.embeds.where(tokens.mask[..., None], 0.5)
        return rows.unflatten(2, (3, 16)).permute(0, 2, 1, 3)

    def bins(self, eps: Tensor, images: Tensor) -> Tensor:
        return torch.bucketize(eps.contiguous(), torch.tensor(self.epsilons)).clamp(max=3)


def pictures() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    strength = torch.linspace(0.05, 1, 24)[:, None, None, None]
    return 0.5 + (torch.rand(24, 3, 16, 16, generator=generator) - 0.5) * strength


def test_counts_fall_over_rising_errors() -> None:
    found = falling(Rows(), pictures(), [0.01, 0.05, 0.1, 0.2])
    assert found.strictly and found.share == 1.0 and list(found.means) == sorted(found.means, reverse=True)
    other = falling(Rows(), pictures(), [0.2, 0.01])
    assert not other.strictly and other.share < 0.5


def test_equal_errors_beat_equal_counts_and_shuffled_ones() -> None:
    found = allocating(Rows(), pictures(), 0.05)
    assert found.psnr > found.fixed_psnr > found.shuffled_psnr - 1
    assert found.psnr > found.shuffled_psnr + 0.5
    flat = allocating(Rows(), pictures()[:1].expand(5, -1, -1, -1), 0.005)
    assert flat.psnr == pytest.approx(flat.fixed_psnr, abs=1e-4) == pytest.approx(flat.shuffled_psnr, abs=1e-4)


def test_the_error_with_few_slots_over_that_with_all() -> None:
    class Leaky(Rows):
        def decode(self, tokens: TokenTensor) -> Tensor:
            return super().decode(tokens) + 0.01

    assert error_ratio(Leaky(), pictures()) > 10


def test_simpler_images_get_fewer_tokens_and_pairs_at_the_floor_do_not_count() -> None:
    images = pictures()
    share, pairs = simpler_gets_fewer(Rows(), images[:12], images[12:], 0.05)
    assert share == 1.0 and pairs == 12
    share, pairs = simpler_gets_fewer(Rows(), images[12:], images[:12], 0.05)
    assert share == 0.0 and pairs == 12
    assert simpler_gets_fewer(Rows(), images[:4], images[:4], 0.3)[1] == 0


def test_smooth_and_textured_thirds_are_the_ends_of_the_order() -> None:
    images = pictures()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    smooth, textured = smooth_and_textured(images[order])
    assert torch.equal(smooth, images[:8]) and torch.equal(textured, images[16:])


def test_verification_leaves_no_image_over_its_error_that_could_meet_it() -> None:
    found = promise(Rows(), pictures(), 0.1)
    assert found.once_over > 0 and found.over == 0 and found.unsatisfiable == 0 and found.passes > 1


def test_images_that_nothing_satisfies_are_counted_apart() -> None:
    class Lossy(Rows):
        def decode(self, tokens: TokenTensor) -> Tensor:
            return super().decode(tokens) + 0.03

    found = promise(Lossy(), pictures(), 0.02)
    assert found.unsatisfiable == 24 and found.over == 0


def test_kinds_are_what_they_are_called() -> None:
    photographs = torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    found = kinds(photographs)
    assert set(found) == {"photographs", "blurred", "gradients", "chessboard", "noise"}
    assert all(
        images.shape == photographs.shape and 0 <= images.min() <= images.max() <= 1 for images in found.values()
    )
    assert blurred(photographs).std() < 0.5 * photographs.std()
    assert gradients(4, 32, 32).diff(dim=2).diff(dim=2).abs().max() < 1e-5
    assert set(chessboards(4, 32, 32).unique().tolist()) == {0.0, 1.0}
    assert torch.equal(kinds(photographs)["noise"], found["noise"])
