"""Change from frame to frame, by hand and against loops."""

import pytest
import torch
from torch import Tensor

import vistok
from vistok.pruning.evs import change, previous
from vistok.tokens import TokenSpec, TokenTensor

# Two cells in three frames, directions in degrees.
FRAMES = [[0, 0, 1, 1, 2, 2]]
DEGREES = [[0.0, 0.0, 30.0, 70.0, 90.0, 80.0]]


def video(degrees: list[list[float]] | Tensor, **fields: Tensor) -> TokenTensor:
    angles = torch.as_tensor(degrees).deg2rad()
    return TokenTensor(TokenSpec("toy"), embeds=torch.stack([angles.cos(), angles.sin()], 2), **fields)


def pick(tokens: TokenTensor, frames: list[list[int]], budget: int | float) -> list[int]:
    chosen: list[int] = vistok.pruner("evs").select(tokens, budget, frames=torch.tensor(frames)).index[0].tolist()
    return chosen


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (1, [0]),
        (2, [0, 1]),  # the first frame
        (3, [0, 1, 3]),  # then changes by 30, 70, 60 and 10 degrees
        (4, [0, 1, 3, 4]),
        (5, [0, 1, 2, 3, 4]),
        (0.5, [0, 1, 3]),
    ],
)
def test_the_first_frame_then_what_changes_most(budget: int | float, expected: list[int]) -> None:
    assert pick(video(DEGREES), FRAMES, budget) == expected


def test_scores_are_one_minus_the_cosine() -> None:
    tokens = video(DEGREES)
    scores = vistok.pruner("evs").select(tokens, 2, frames=torch.tensor(FRAMES)).scores
    assert scores is not None
    turned = torch.tensor([30.0, 70.0, 60.0, 10.0]).deg2rad()
    torch.testing.assert_close(scores[0], torch.cat([torch.tensor([3.0, 3.0]), 1 - turned.cos()]))


def test_a_still_video_keeps_its_first_frames() -> None:
    still = torch.rand(1, 6, generator=torch.Generator().manual_seed(0)).mul(360).repeat(1, 5)
    frames = [torch.arange(5).repeat_interleave(6).tolist()]
    assert pick(video(still), frames, 9) == list(range(9))


def test_an_image_keeps_its_first_tokens() -> None:
    assert pick(video(DEGREES), [[0] * 6], 4) == [0, 1, 2, 3]


def test_what_belongs_to_no_frame_is_kept_as_the_first_one_is() -> None:
    degrees = [[0.0, 0.0, 5.0, 0.0, 10.0, 0.0, 90.0, 5.0]]
    frames = [[-1, 0, 0, -1, 1, 1, -1, -1]]
    assert pick(video(degrees), frames, 6) == [0, 1, 2, 3, 6, 7]
    assert pick(video(degrees), frames, 7) == [0, 1, 2, 3, 4, 6, 7]


def test_the_cell_before_is_found_whatever_the_order_and_the_number_of_tokens() -> None:
    draw = torch.Generator().manual_seed(1)
    for _ in range(20):
        frames = torch.randint(-1, 4, (2, 15), generator=draw)
        valid = torch.arange(15) < torch.tensor([[15], [9]])
        found = previous(frames, valid)
        for row, length in enumerate([15, 9]):
            cells = {frame: [slot for slot in range(length) if frames[row, slot] == frame] for frame in range(-1, 4)}
            for slot in range(length):
                frame = int(frames[row, slot])
                before = cells[frame - 1] if frame > 0 else []
                cell = cells[frame].index(slot)
                assert found[row, slot] == (before[cell] if cell < len(before) else -1)


def test_a_frame_that_is_missing_leaves_nothing_to_compare_with() -> None:
    frames, valid = torch.tensor([[0, 0, 2, 2, 3]]), torch.ones(1, 5, dtype=torch.bool)
    assert previous(frames, valid).tolist() == [[-1, -1, -1, -1, 2]]


def test_padding_and_its_frames_do_not_matter_and_nan_is_taken_last() -> None:
    tokens, frames = video(DEGREES), torch.tensor(FRAMES)
    assert tokens.embeds is not None
    short = torch.arange(6)[None] < 4
    assert torch.equal(
        change(tokens.embeds, frames, short)[:, :4], change(tokens.embeds[:, :4], frames[:, :4], short[:, :4])
    )
    broken = tokens.replace(embeds=tokens.embeds.index_fill(1, torch.tensor([0]), torch.nan))
    assert pick(broken, FRAMES, 5) == [1, 2, 3, 4, 5]


def test_missing_frames_are_named() -> None:
    with pytest.raises(ValueError, match=r"evs: expected frames \[1, 6\], got none"):
        vistok.pruner("evs").select(video(DEGREES), 2)
    with pytest.raises(ValueError, match=r"evs: expected frames \[1, 6\] for these tokens, got \[1, 4\]"):
        vistok.pruner("evs").select(video(DEGREES), 2, frames=torch.zeros(1, 4).long())
