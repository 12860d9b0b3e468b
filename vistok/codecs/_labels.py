"""Labels beside tokens: what may stand there, and where one is read."""

from collections.abc import Sequence

BREAK = ";"


def checked(owner: str, labels: Sequence[str] | None, count: int, place: str) -> list[str]:
    """One label for each of `count` items, "" where none are given.

    Raises: ValueError if the text has no place for labels, their number is wrong, or one would not be read back: it
    holds <, > or ;, or begins or ends with a space.
    """
    if labels is None:
        return [""] * count
    if not place:
        raise ValueError(f"{owner}: expected no labels, its text has no place for any")
    if len(labels) != count:
        raise ValueError(f"{owner}: expected {count} labels, one for each item, got {len(labels)}")
    for label in labels:
        if label != label.strip() or any(sign in label for sign in ("<", ">", BREAK)):
            raise ValueError(f"{owner}: expected labels without <, > and {BREAK} or spaces around, got {label!r}")
    return list(labels)


def after(text: str, stop: int, limit: int) -> str:
    """The label behind place `stop` of a text: up to the next ; or < (other tokens), or place `limit`."""
    return text[stop:limit].partition(BREAK)[0].partition("<")[0].strip()


def before(text: str, begin: int, start: int) -> str:
    """The label before place `start` of a text: from place `begin`, or from behind the last > (other tokens) on."""
    return text[begin:start].rpartition(">")[2].strip()
