"""What a perception model is asked in a test, and its answers from its own spans and from others in their place.

Its family says which: depths ("depth") have codes replaced, counts ("cells") whole lists.
"""

from collections.abc import Sequence

from vistok.lvlm.count_questions import CountTexts, count_questions
from vistok.lvlm.count_test import LISTS, count_test
from vistok.lvlm.perception_model import PerceptionModel
from vistok.lvlm.perception_texts import PerceptionQuestion
from vistok.lvlm.point_questions import PointTexts, point_questions
from vistok.lvlm.replacement_test import REPLACED, Said, replacement_test


def counts_things(host: PerceptionModel) -> bool:
    """Whether a model was trained to count."""
    return bool(host.settings["family"] == "cells")


def asked_of(host: PerceptionModel, count: int, split: str = "test") -> Sequence[PerceptionQuestion]:
    """`count` questions of what a model was trained for; the same for the same arguments."""
    family = host.attachment.families[0]
    if counts_things(host):
        return count_questions(CountTexts(family), count, split=split)
    return point_questions(PointTexts(family), count, split=split)


def chain_rows(
    host: PerceptionModel, asked: Sequence[PerceptionQuestion], *, replaced: bool = True, seed: int = 0
) -> dict[str, list[Said]]:
    """Answers by row, that of the model's own spans (`OWN`) first; replaced: the rows of other spans too."""
    if counts_things(host):
        return count_test(host, asked, LISTS if replaced else (), seed=seed)
    return replacement_test(host, asked, REPLACED if replaced else (), seed=seed)
