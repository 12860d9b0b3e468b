"""Where the token strings of a codec stand in a text, and texts that may be anything at all."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from vistok.protocols import ParseError, Span


class Word(NamedTuple):
    """One token string at characters start..stop. code: local code, -1 for a marker, -2 if there is no such token."""

    text: str
    code: int
    start: int
    stop: int


class Scanner:
    """Finds a codec's tokens, and what looks like them. codes: their strings, markers: other strings of the codec.

    lookalike: a regular expression of everything that a reader would take for such a token.
    """

    def __init__(self, codes: Sequence[str], markers: Sequence[str], lookalike: str) -> None:
        self._codes = {text: code for code, text in enumerate(codes)} | dict.fromkeys(markers, -1)
        self._pattern = re.compile(lookalike)

    def words(self, text: str) -> list[Word]:
        """All of them, in order."""
        return [
            Word(found[0], self._codes.get(found[0], -2), found.start(), found.end())
            for found in self._pattern.finditer(text)
        ]


def runs(text: str, words: Sequence[Word], between: str) -> list[list[Word]]:
    """Words that follow one another with nothing but `between` and spaces in the gaps, grouped."""
    found: list[list[Word]] = []
    for word in words:
        if found and text[found[-1][-1].stop : word.start].strip() == between:
            found[-1].append(word)
        else:
            found.append([word])
    return found


def marked_spans(text: str, words: Sequence[Word], begin: str, end: str, count: int) -> list[Span | ParseError]:
    """Spans of `count` codes between two markers, with nothing but spaces between the tokens."""
    found: list[Span | ParseError] = []
    open_at: int | None = None  # place in `words` behind the marker of the span that is open
    place = 0
    while place < len(words):
        word = words[place]
        if open_at is not None and (reason := _breaks(text, words, place, begin)):
            found.append(ParseError(reason, words[open_at - 1].start, words[place - 1].stop))
            open_at = None
        elif word.text == begin:
            open_at, place = place + 1, place + 1
        elif open_at is not None and word.text == end:
            found.append(_closed(words[open_at - 1 : place + 1], count))
            open_at, place = None, place + 1
        elif open_at is not None:
            place += 1
        else:
            last = place
            while last + 1 < len(words) and words[last + 1].text != begin:
                last += 1
            reason = f"expected {begin} before {word.text}, got none"
            found.append(ParseError(reason, word.start, words[last].stop))
            place = last + 1
    if open_at is not None:
        codes = len(words) - open_at
        reason = f"expected {count} codes and {end} behind {begin}, got {codes} and the end of the text"
        found.append(ParseError(reason, words[open_at - 1].start, words[-1].stop))
    return found


def _breaks(text: str, words: Sequence[Word], place: int, begin: str) -> str:
    """Why the open span cannot go on with that word, "" if it can."""
    if words[place].text == begin:
        return f"expected the end of the span, got another {begin} inside it"
    gap = text[words[place - 1].stop : words[place].start].strip()
    return f"expected nothing between tokens of a span, got {_shown(gap)}" if gap else ""


def _closed(words: Sequence[Word], count: int) -> Span | ParseError:
    start, stop, codes = words[0].start, words[-1].stop, words[1:-1]
    unknown = next((word for word in codes if word.code < 0), None)
    if unknown is not None:
        return ParseError(f"expected codes of this codec, got {_shown(unknown.text)}", start, stop)
    if len(codes) != count:
        return ParseError(f"expected {count} codes, got {len(codes)}", start, stop)
    return Span(tuple(word.code for word in codes), start, stop)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 24 else text[:24] + "..")
