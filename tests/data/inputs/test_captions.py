import pytest

from vistok.data.inputs.captions import as_json, as_text, caption_in


def test_a_caption_is_a_string_under_caption_or_text():
    assert caption_in({"text": "b", "caption": "a"}) == "a"
    assert caption_in({"text": "b", "caption": ["a"]}) == "b"
    assert caption_in({"other": "a"}) is None and caption_in(["caption"]) is None and caption_in(3) is None


@pytest.mark.parametrize("text", ["", "{", "[" * 10**5, "1" * 10**5, "nul"])
def test_no_json_is_an_error_that_names_the_file(text):
    with pytest.raises(ValueError, match="here.*JSON"):
        as_json(text, "here")


def test_text_is_stripped_and_without_byte_order_mark():
    assert as_text(b"\xef\xbb\xbf caf\xc3\xa9\n", "here") == "caf\xe9"
