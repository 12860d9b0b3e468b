"""Pictures with questions and answers, as LLaVA's training files hold them, and as input of a language model.

A record is {"image": path, "conversations": [{"from": "human", "value": "<image>\\nquestion"}, {"from": "gpt", "value":
answer}, ...]}; a file is JSON Lines or one JSON list. B samples, n tokens.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vistok.data.images import open_image
from vistok.lvlm.relevance import IGNORED

# What a processor may give beside input_ids, and what its value is where an answer follows.
_BEHIND = {"attention_mask": 1, "mm_token_type_ids": 0, "token_type_ids": 0}


class Sample(NamedTuple):
    """One question about one picture; group: what must not be split between training and validation."""

    image: Path | Image.Image
    question: str
    answer: str
    group: str


def read_conversations(file: str | Path, images: str | Path | None = None) -> Iterator[Sample]:
    """Every question with its answer, each apart from the others; records without a picture are left out.

    images: the folder that paths are relative to, that of the file if not given. Raises: FileNotFoundError if there is
    no such file; ValueError naming a record that is none.
    """
    file = Path(file)
    folder = file.parent if images is None else Path(images)
    for number, record in enumerate(_records(file), 1):
        try:
            image = record.get("image")
            turns = [(turn["from"], str(turn["value"])) for turn in record["conversations"]]
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file}, record {number}: expected an object with conversations, got {error!r}"
            ) from error
        if [speaker for speaker, _ in turns] != ["human", "gpt"] * (len(turns) // 2):
            raise ValueError(f"{file}, record {number}: expected turns human, gpt, human, gpt and so on")
        if image is None:
            continue
        for (_, question), (_, answer) in zip(turns[::2], turns[1::2], strict=True):
            yield Sample(folder / image, question.replace("<image>", "").strip(), answer.strip(), str(image))


def _records(file: Path) -> Iterator[Any]:
    if file.suffix == ".json":
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}: expected JSON, got {error}") from error
        if not isinstance(found, list):
            raise ValueError(f"{file}: expected a list of records, got {type(found).__name__}")
        yield from found
        return
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}, line {number}: expected one JSON object a line, got {error}") from error


def model_inputs(
    processor: Any, samples: Sequence[Sample], prompt: str | None = None, answer: str = "{answer}"
) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs for one forward pass over prompts and answers, and labels [B, n]: -100 but for an answer and its end.

    Prompts are padded on the left, answers on the right. prompt: such as "USER: <image>\\n{question} ASSISTANT:"; None
    is the processor's chat template. answer: what is said, such as " {answer}" where a prompt ends without a space.
    Raises: ValueError if an answer has no tokens or the processor no chat template.
    """
    tokenizer = processor.tokenizer
    texts = [_prompt(processor, sample.question, prompt) for sample in samples]
    pictures = [open_image(sample.image) if isinstance(sample.image, Path) else sample.image for sample in samples]
    # A template that writes the first token itself must not get a second one.
    begun = tokenizer.bos_token is not None and texts[0].startswith(tokenizer.bos_token)
    made = processor(
        images=pictures,
        text=texts,
        padding=True,
        padding_side="left",
        return_tensors="pt",
        add_special_tokens=not begun,
    )
    spoken = [_answer_ids(tokenizer, answer.format(answer=sample.answer)) for sample in samples]
    return with_answers(dict(made), spoken, tokenizer.pad_token_id or 0)


def with_answers(
    inputs: dict[str, Tensor], answers: Sequence[Sequence[int]], padding: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Prompts [B, n] with the ids of their answers behind them, and labels; `padding` fills up the shorter ones."""
    ids = inputs["input_ids"]
    given = [torch.tensor(answer, dtype=torch.int64, device=ids.device) for answer in answers]
    labels = pad_sequence(given, batch_first=True, padding_value=IGNORED)
    spoken = labels != IGNORED
    joined = dict(inputs, input_ids=torch.cat([ids, labels.where(spoken, padding)], 1))
    mask = inputs.get("attention_mask", torch.ones_like(ids))
    for name, value in {**inputs, "attention_mask": mask}.items():
        if name in _BEHIND:
            joined[name] = torch.cat([value, spoken.to(value.dtype) * _BEHIND[name]], 1)
    return joined, torch.cat([torch.full_like(ids, IGNORED), labels], 1)


def _prompt(processor: Any, question: str, prompt: str | None) -> str:
    if prompt is not None:
        return prompt.format(question=question)
    if getattr(processor, "chat_template", None) is None:
        raise ValueError(
            "prompt: expected a processor with a chat template, got none; give one such as "
            "'USER: <image>\\n{question} ASSISTANT:'"
        )
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text: str = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return text


def _answer_ids(tokenizer: Any, answer: str) -> list[int]:
    ids = list(tokenizer(answer, add_special_tokens=False).input_ids)
    if not ids:
        raise ValueError(f"answer: expected one with tokens, got {answer!r}")
    return ids if tokenizer.eos_token_id is None else [*ids, tokenizer.eos_token_id]
