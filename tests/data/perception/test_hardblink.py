"""Questions of HardBLINK's layout, and the label that an answer ends with."""

import json

import pytest

from vistok.data.perception.hardblink import label_matches, last_label, read_hardblink


def test_lines_are_read_with_and_without_answers(tmp_path):
    rows = [
        {"question_id": 3, "image": "x.png", "text": "Which?", "answer": "(B)"},
        {"question_id": "q", "image": "y.png", "text": "Which?", "answer": "c"},
        {"question_id": "r", "image": "z.png", "text": "Which?"},
    ]
    file = tmp_path / "three.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    found = list(read_hardblink(file, tmp_path / "images"))
    assert [question.answer for question in found] == ["B", "C", None]
    assert found[0].question_id == "3" and found[0].image == tmp_path / "images" / "x.png"


@pytest.mark.parametrize(
    ("line", "message"),
    [("{", "line 1: expected an object"), ('{"question_id": 1, "text": "t"}', "KeyError.*image"),
     ('{"question_id": 1, "image": "i", "text": "t", "answer": "near"}', "an answer such as .*got 'near'")],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path, line, message):
    file = tmp_path / "bad.jsonl"
    file.write_text(line)
    with pytest.raises(ValueError, match=message):
        list(read_hardblink(file))


def test_the_last_label_counts():
    assert last_label("(A) is far, so the answer is ( b ).") == "B" and last_label("B") is None
    assert label_matches(["It is (A), no (B)", "A", "(C)"], ["b", "A", "A"]) == [True, False, False]
