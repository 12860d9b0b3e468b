"""Answers of a vision-language model, through its own `generate`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from vistok.lvlm.prompting import Read, VisualQuestion, as_picture, batches


def answer_questions(
    model: Any,
    processor: Any,
    questions: Sequence[VisualQuestion],
    read: Read = as_picture,
    *,
    batch: int = 32,
    max_new_tokens: int = 8,
    pixels: bool = False,
    on_batch: Callable[[int], None] | None = None,
) -> list[str]:
    """What the model says to every question, greedily, in the order of the questions.

    model, processor: as `load_lvlm` gives them. read: opens a question's `picture`. pixels: as in `batches`, needed
    inside `prune` with a pruner that reads the attention of the vision tower. on_batch: told the number of questions
    answered since the last call.
    """
    answers = [""] * len(questions)
    with torch.inference_mode():
        for each in batches(model, processor, questions, read, batch=batch, pixels=pixels):
            for number, words in zip(each.numbers, speak(model, processor, each.inputs, max_new_tokens), strict=True):
                answers[number] = words
            if on_batch is not None:
                on_batch(len(each.numbers))
    return answers


def speak(model: Any, processor: Any, inputs: Mapping[str, Any], max_new_tokens: int) -> list[str]:
    """Greedy continuations of a batch of prompts, without special tokens."""
    padding = model.generation_config.pad_token_id
    made = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=processor.tokenizer.pad_token_id if padding is None else padding,
    )
    spoken = made[:, inputs["input_ids"].shape[1] :]
    return [words.strip() for words in processor.batch_decode(spoken, skip_special_tokens=True)]
