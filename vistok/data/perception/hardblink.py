"""HardBLINK: relative depth among 3, 4 or 5 marked points (arXiv:2412.03548), as JSON Lines of questions.

A line is {"question_id", "image", "text"}, with the right label as "answer" where the file has it, "(B)" or "B".
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

_LABEL = re.compile(r"\(\s*([A-Za-z])\s*\)")


class MarkedQuestion(NamedTuple):
    """A question about one picture; answer: its label, None if the file does not say."""

    question_id: str
    image: Path
    text: str
    answer: str | None


def read_hardblink(file: str | Path, images: str | Path | None = None) -> Iterator[MarkedQuestion]:
    """Every question of a file. images: the folder that paths start from, that of the file if not given.

    Raises: FileNotFoundError; ValueError naming a line that lacks a field or whose answer is no label.
    """
    file = Path(file)
    folder = file.parent if images is None else Path(images)
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                found = MarkedQuestion(str(row["question_id"]), folder / row["image"], str(row["text"]), None)
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{file}, line {number}: expected an object with question_id, image and text, got {error!r}"
                ) from error
            answer = row.get("answer")
            label = None if answer is None else last_label(f"({answer})" if len(str(answer)) == 1 else str(answer))
            if answer is not None and label is None:
                raise ValueError(f"{file}, line {number}: expected an answer such as '(B)', got {answer!r}")
            yield found._replace(answer=label)


def last_label(text: str) -> str | None:
    """The letter of the last "(X)" in a text, upper case; None if there is none."""
    found = _LABEL.findall(text)
    return found[-1].upper() if found else None


def label_matches(answers: Sequence[str], labels: Sequence[str]) -> list[bool]:
    """Whether the last "(X)" of each answer is the label; an answer without one is wrong."""
    return [last_label(answer) == label.upper() for answer, label in zip(answers, labels, strict=True)]
