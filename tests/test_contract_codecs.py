"""What every codec promises, over `vistok.list_codecs()` with their `tiny` settings; nothing here knows a method.

What a codec encodes only its own test file can say: tests/codecs/test_<method>.py has `example(codec, generator)`,
at least two things perceived, and, where their text may have a place for labels, `labelled(codec)`, whether it has.
"""

import random
from dataclasses import replace
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vistok
from vistok.protocols import Codec, ParseError, Span
from vistok.tokens import TokenTensor

NAMES = vistok.list_codecs()
FAST_STRINGS, ALL_STRINGS = 1000, 10_000  # over all codecs
LABELS = ["cat", "a red ball", "", "Ünïcode 7"]


def build(name: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = vistok.codec(name, **vistok.info("codec", name).tiny)
    if isinstance(codec, nn.Module):
        codec.eval()
    return codec


@cache
def own_tests(method: str) -> Any:
    path = Path(__file__).parent / "codecs" / f"test_{method}.py"
    spec = spec_from_file_location(f"example_of_{method}", path)
    assert spec is not None and spec.loader is not None and path.is_file(), f"{path}: expected it to have `example`"
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def example(name: str, codec: Any, seed: int = 0) -> Any:
    return own_tests(vistok.info("codec", name).method).example(codec, torch.Generator().manual_seed(seed))


def labelled(name: str) -> bool:
    return bool(getattr(own_tests(vistok.info("codec", name).method), "labelled", lambda codec: False)(build(name)))


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def codec(name: str) -> Any:
    return build(name)


def rows(tokens: TokenTensor) -> list[tuple[int, ...]]:
    assert tokens.indices is not None
    return [tuple(row[:n].tolist()) for row, n in zip(tokens.indices, tokens.valid_lengths.tolist(), strict=True)]


def test_there_are_codecs_to_test() -> None:
    assert {"depth", "pixel336", "loc1024", "loc1000", "seg128"} <= set(NAMES)


def test_it_satisfies_the_protocol_and_its_strings_differ(codec: Any, name: str) -> None:
    assert isinstance(codec, Codec) and codec.name == name and isinstance(codec.cannot, frozenset)
    assert len(set(codec.strings)) == len(codec.strings) and set(codec.codes) <= set(codec.strings)
    assert codec.spec.name == name and codec.spec.codebook_sizes == (len(codec.codes),)


def test_settings_are_plain_data_with_a_summary(name: str) -> None:
    config = vistok.info("codec", name)
    assert config.summary and all(isinstance(key, str) for key in {**config.settings, **config.tiny})


def test_encode_gives_valid_tokens(codec: Any, name: str) -> None:
    tokens = codec.encode(example(name, codec)).check()
    assert len(tokens) >= 2 and tokens.spec.name == name
    for row in rows(tokens):
        assert codec.num_tokens in (None, len(row)) and min(row) >= 0 and max(row) < len(codec.codes)


def test_encoding_twice_gives_the_same_and_each_item_alone_what_it_gives_among_others(codec: Any, name: str) -> None:
    values = example(name, codec)
    found = rows(codec.encode(values))
    assert found == rows(build(name).encode(values))
    assert found == [rows(codec.encode(values[place : place + 1]))[0] for place in range(len(found))]


def test_text_is_read_back_as_the_tokens_it_was_made_of(codec: Any, name: str) -> None:
    tokens = codec.encode(example(name, codec))
    texts = codec.to_text(tokens)
    for text, row in zip(texts, rows(tokens), strict=True):
        (span,) = codec.parse(text)
        assert isinstance(span, Span) and span.codes == row and (span.start, span.stop) == (0, len(text))
    text = "So: " + " ; ".join(texts) + " ; done."
    spans = codec.parse(text)
    assert [span.codes for span in spans] == rows(tokens)
    assert [text[span.start : span.stop] for span in spans] == texts
    again = codec.tokens(spans).check()
    assert rows(again) == rows(tokens)
    decoded, expected = codec.decode(replace(again, spec=tokens.spec)), codec.decode(tokens)
    torch.testing.assert_close(decoded, expected, rtol=0, atol=0)


def test_labels_are_read_back_where_there_is_a_place_for_them(codec: Any, name: str) -> None:
    tokens = codec.encode(example(name, codec))
    labels = (LABELS * len(tokens))[: len(tokens)]
    if not labelled(name):
        with pytest.raises(ValueError, match="no labels"):
            codec.to_text(tokens, labels)
        return
    texts = codec.to_text(tokens, labels)
    assert [span.label for text in texts for span in codec.parse(text)] == labels
    for wrong in ("a;b", "<loc0001>", " cat"):
        with pytest.raises(ValueError, match="expected labels without"):
            codec.to_text(tokens, [wrong] * len(tokens))
    with pytest.raises(ValueError, match=f"expected {len(tokens)} labels"):
        codec.to_text(tokens, labels[1:])


def test_what_was_decoded_has_the_same_text(codec: Any, name: str) -> None:
    """Of networks only roughly: what they decode is not what they would encode to the same codes."""
    if isinstance(codec, nn.Module):
        return
    tokens = codec.encode(example(name, codec))
    assert rows(codec.encode(codec.decode(tokens))) == rows(tokens)


def test_ids_that_are_no_codes_are_refused(codec: Any, name: str) -> None:
    tokens = codec.encode(example(name, codec))
    for wrong in (len(codec.codes), -1):
        spoiled = tokens.indices.clone()
        spoiled[0, 0] = wrong
        for use in (codec.to_text, codec.decode):
            with pytest.raises(ValueError, match="expected"):
                use(replace(tokens, indices=spoiled))
        with pytest.raises(ValueError, match="expected"):
            codec.tokens([Span(tuple(spoiled[0].tolist()), 0, 1)])
    if codec.num_tokens is not None:
        with pytest.raises(ValueError, match="expected"):
            codec.decode(replace(tokens, indices=tokens.indices[:, 1:]))
    with pytest.raises(ValueError, match="expected"):
        codec.tokens([Span((0,), 0, 1)])


def test_no_spans_make_no_items(codec: Any) -> None:
    assert len(codec.tokens([]).check()) == 0 and codec.parse("") == []
    assert codec.parse("no tokens at all, <b>only</b> words") == []


def test_a_saved_folder_is_a_checkpoint_of_the_name(codec: Any, name: str, tmp_path: Path) -> None:
    if not isinstance(codec, nn.Module):
        return
    codec.save_pretrained(tmp_path)  # type: ignore[operator]
    loaded: Any = vistok.codec(name, checkpoint=tmp_path)
    values = example(name, codec)
    assert rows(loaded.eval().encode(values)) == rows(codec.encode(values))


def spoiled_texts(codec: Any, texts: list[str], count: int, seed: int) -> list[str]:
    """Texts cut, doubled and mixed with other tokens and with anything else."""
    rng = random.Random(seed)
    strange = ["", " ", "\n", ",", "(", ")", ";", "<", ">", "<loc", "<DEPTH_", "<PIXEL_1", "<seg999>", "<loc1024>"]
    strange += ["<loc_7>", "<DEPTH_START>", "<DEPTH_END>", "<DEPTH_-1>", "<DEPTH_00>", "<poly>", "</poly>", "<sep>"]
    strange += ["<loc٣>", "é\u0000", "\u202e", "<PIXEL_١>", "cat", "<DEPTH_99999999999999999999>", "😀"]

    def piece() -> str:
        kind = rng.randrange(4)
        if kind == 0:
            return rng.choice(strange)
        if kind == 1:
            return "".join(rng.choice(codec.strings) for _ in range(rng.randrange(1, 25)))
        text = rng.choice(texts)
        start, stop = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        return text if kind == 2 else text[start:stop]

    return [rng.choice(["", " ", ";", ","]).join(piece() for _ in range(rng.randrange(1, 6))) for _ in range(count)]


def check_parses(codec: Any, tokens: TokenTensor, text: str) -> int:
    """Results lie in the text in order, hold all of the codec's tokens, and spans are items; how many spans."""
    found = codec.parse(text)
    held, last = [], 0
    for result in found:
        assert isinstance(result, Span | ParseError)
        assert last <= result.start < result.stop <= len(text), (text, found)
        held.append(range(result.start, result.stop))
        last = result.stop
        if isinstance(result, ParseError):
            assert result.reason
            continue
        again = codec.tokens([result])
        codec.decode(replace(again, spec=tokens.spec))
        (span,) = codec.parse(codec.to_text(again)[0])
        assert span.codes == result.codes
    for string in set(codec.strings) & set(_pieces(text)):
        place = text.find(string)
        while place >= 0:
            assert any(place in inside for inside in held), (string, text, found)
            place = text.find(string, place + 1)
    return sum(isinstance(result, Span) for result in found)


def _pieces(text: str) -> list[str]:
    """What stands between < and > in a text, brackets included."""
    return [f"<{part.partition('>')[0]}>" for part in text.split("<")[1:] if ">" in part]


def fuzz(name: str, count: int) -> None:
    codec = build(name)
    tokens = codec.encode(example(name, codec))
    texts = codec.to_text(tokens)
    spans = sum(check_parses(codec, tokens, text) for text in spoiled_texts(codec, texts, count, seed=count))
    assert spans > count / 20, "hardly any text held an item, so little was tested"


def test_any_string_parses_to_spans_or_errors(name: str) -> None:
    fuzz(name, FAST_STRINGS // len(NAMES) + 1)


@pytest.mark.slow
def test_ten_thousand_strings_in_all_parse_to_spans_or_errors(name: str) -> None:
    fuzz(name, ALL_STRINGS // len(NAMES) + 1)
