"""Questions and answers in LLaVA's format, and the inputs made of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vistok.lvlm.micro import MicroSettings, make_processor
from vistok.train.conversations import Sample, model_inputs, read_conversations, with_answers

TURNS = [
    {"from": "human", "value": "<image>\nwhat color is the thing ?"},
    {"from": "gpt", "value": "red"},
    {"from": "human", "value": "how many things ?"},
    {"from": "gpt", "value": " two "},
]


@pytest.fixture(scope="module")
def processor() -> Any:
    return make_processor(MicroSettings(side=32))


def write(path: Path, records: list[Any]) -> Path:
    text = json.dumps(records) if path.suffix == ".json" else "".join(json.dumps(r) + "\n" for r in records)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_every_question_comes_with_its_answer_and_its_picture(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, [{"image": "a/1.png", "conversations": TURNS}, {"conversations": TURNS}])
    found = list(read_conversations(file))
    assert found == [
        Sample(tmp_path / "a/1.png", "what color is the thing ?", "red", "a/1.png"),
        Sample(tmp_path / "a/1.png", "how many things ?", "two", "a/1.png"),
    ]
    assert next(read_conversations(file, tmp_path / "elsewhere")).image == tmp_path / "elsewhere" / "a/1.png"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"image": "a.png"}\n', r"record 1: expected an object with conversations.*KeyError"),
        ('{"conversations": []}\n[1]\n', r"record 2: expected an object"),
        ('{"conversations": [{"from": "gpt", "value": "x"}]}\n', r"record 1: expected turns human, gpt"),
        ('{"conversations": [', r"line 1: expected one JSON object a line"),
    ],
)
def test_a_record_that_is_none_is_named(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        list(read_conversations(file))


def test_a_file_that_is_missing_or_no_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none.jsonl"):
        list(read_conversations(tmp_path / "none.jsonl"))
    (tmp_path / "data.json").write_text("{}")
    with pytest.raises(ValueError, match="a list of records, got dict"):
        list(read_conversations(tmp_path / "data.json"))


def sample(question: str, answer: str, side: int = 32) -> Sample:
    return Sample(Image.new("RGB", (side, side), "red"), question, answer, "red")


def test_prompts_are_padded_on_the_left_and_answers_on_the_right(processor: Any) -> None:
    samples = [sample("what color is the thing ?", "red"), sample("is the thing red or red ?", "red red")]
    inputs, labels = model_inputs(processor, samples)
    tokenizer = processor.tokenizer
    red, end, image = (tokenizer.convert_tokens_to_ids(word) for word in ("red", "</s>", "<image>"))
    assert labels[:, -3:].tolist() == [[red, end, -100], [red, red, end]]
    assert (labels[:, :-3] == -100).all()
    assert inputs["input_ids"][:, -3:].tolist() == [[red, end, tokenizer.pad_token_id], [red, red, end]]
    assert inputs["attention_mask"].sum(1).diff().tolist() == [2]  # one word more to ask and one more to say
    assert inputs["attention_mask"][0, 0] == 0 and inputs["attention_mask"][:, -3:].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert (inputs["input_ids"] == image).sum(1).tolist() == [16, 16]
    assert inputs["pixel_values"].shape == (2, 3, 32, 32)
    first = inputs["input_ids"][0][inputs["attention_mask"][0] > 0]
    text = tokenizer.decode(first).replace("<image> ", "")
    assert text == "<s> user : what color is the thing ? assistant : red </s>"


def test_a_prompt_of_ones_own_replaces_the_template(processor: Any) -> None:
    inputs, _ = model_inputs(processor, [sample("what ?", "red")], "<s> <image> {question} :", "a {answer}")
    text = processor.tokenizer.decode(inputs["input_ids"][0]).replace("<image> ", "")
    assert text == "<s> what ? : a red </s>"  # and one <s> only


def test_what_cannot_be_asked_or_answered_is_named(processor: Any) -> None:
    with pytest.raises(ValueError, match="expected one with tokens, got ''"):
        model_inputs(processor, [sample("what ?", "")])
    bare = make_processor(MicroSettings(side=32))
    bare.chat_template = None
    with pytest.raises(ValueError, match="expected a processor with a chat template"):
        model_inputs(bare, [sample("what ?", "red")])


def test_what_goes_with_the_ids_grows_with_them() -> None:
    inputs = {"input_ids": torch.tensor([[5, 6], [7, 8]]), "mm_token_type_ids": torch.tensor([[1, 0], [1, 0]])}
    joined, labels = with_answers(inputs, [[1], [2, 3]], 9)
    assert joined["input_ids"].tolist() == [[5, 6, 1, 9], [7, 8, 2, 3]]
    assert joined["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert joined["mm_token_type_ids"].tolist() == [[1, 0, 0, 0], [1, 0, 0, 0]]
    assert labels.tolist() == [[-100, -100, 1, -100], [-100, -100, 2, 3]]
