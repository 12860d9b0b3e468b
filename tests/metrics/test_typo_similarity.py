"""Typos change letters inside words and nothing else; similarity by hand; rendered words beside subword ids."""

from collections.abc import Sequence
from random import Random

import pytest
import torch
from torch import Tensor

import vistok
from vistok.data.rendered_text import TextRenderer
from vistok.metrics.typo_similarity import id_counts, typo_similarity, visual_embedding, with_typos

WORDS = ["triangle", "square", "circle", "yellow", "striped", "dotted", "small", "nearest"]


def distance(a: str, b: str) -> int:
    """Edits between two words, a swap of neighbours counted as one."""
    rows = [list(range(len(b) + 1))]
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (x != y)))
            if i > 1 and j > 1 and x == b[j - 2] and y == a[i - 2]:
                row[-1] = min(row[-1], rows[-2][j - 2] + 1)
        rows.append(row)
    return rows[-1][-1]


def test_a_typo_is_one_edit_inside_a_word() -> None:
    for seed in range(60):
        changed = with_typos("a small circle, then", 1, Random(seed))
        assert distance("a small circle, then", changed) == 1
        assert changed[0] == "a" and changed.count(" ") == 3 and changed.count(",") == 1
    assert {distance("triangle", with_typos("triangle", 2, Random(seed))) for seed in range(40)} <= {1, 2}
    assert all(
        with_typos("red", 3, Random(seed)) != "red" for seed in range(60)
    )  # never one letter too few for the next
    with pytest.raises(ValueError, match="word of at least three letters, got 'a 7 of'"):
        with_typos("a 7 of", 1, Random(0))


def test_similarity_of_known_vectors() -> None:
    versions: list[str] = []

    def embed(texts: Sequence[str]) -> Tensor:
        versions.extend(texts[2:])
        # At 1 and -1 about their mean; the first one's version stays, the second one's goes over to the first.
        return torch.tensor([[3.0, 5.0], [1.0, 5.0], [3.0, 5.0], [3.0, 5.0]])

    (found,) = typo_similarity(embed, ["square", "circle"], typos=[1])
    assert len(versions) == 2 and all(a != b for a, b in zip(versions, ["square", "circle"], strict=True))
    assert (found.cosine, found.others, found.recall) == pytest.approx((0, -1, 0.5))
    assert found.kept == pytest.approx(0.5)
    with pytest.raises(ValueError, match="two texts that differ"):
        typo_similarity(embed, ["same", "same"])


def test_rendered_words_stay_near_themselves_where_ids_of_whole_words_are_lost() -> None:
    ids = {word: number for number, word in enumerate(WORDS)}
    subwords = id_counts(lambda text: [ids.get(text, len(ids))], len(ids) + 1)
    seen = visual_embedding(vistok.tokenizer("ett_nano", pretrained=True).eval(), TextRenderer(16), unit=12)
    by_id, by_sight = (typo_similarity(embed, WORDS, typos=[1])[0] for embed in (subwords, seen))
    assert by_id.kept < 0.2 and by_sight.kept > 0.3 and by_sight.kept > by_id.kept + 0.2
