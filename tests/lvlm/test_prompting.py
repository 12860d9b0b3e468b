"""Batches of prompts: the processor's own inputs, every picture once, and the same words whatever the batch."""

from collections import Counter
from typing import Any

import pytest
import torch
from PIL import Image

from vistok.data.samples import sample_path
from vistok.lvlm.answer import answer_questions
from vistok.lvlm.prompting import VisualQuestion, batches, chat_prompt, pixel_inputs
from vistok.lvlm.scene_questions import scene_picture, scene_questions

from .micro_fixtures import tiny_micro

READ = scene_picture(64)


@pytest.fixture(scope="module")
def host() -> tuple[Any, Any]:
    return tiny_micro()


@pytest.fixture(scope="module")
def asked() -> list[VisualQuestion]:
    """Thirty questions, three about each of ten scenes."""
    scenes = [question.picture for question in scene_questions("test", 10)]
    return [VisualQuestion(scenes[i % 10], q.text, q.answer, q.kind) for i, q in enumerate(scene_questions("test", 30))]


@torch.inference_mode()
def test_features_and_placeholders_give_what_the_processor_and_the_tower_give(host: Any, asked: Any) -> None:
    model, processor = host
    seen = []
    for each in batches(model, processor, asked, READ, batch=8):
        own = [asked[number] for number in each.numbers]
        texts = [chat_prompt(processor, question.text) for question in own]
        plain = pixel_inputs(model, processor, texts, [READ(question.picture) for question in own])
        assert torch.equal(plain["input_ids"], each.inputs["input_ids"])
        assert torch.equal(plain["attention_mask"], each.inputs["attention_mask"])
        torch.testing.assert_close(model(**plain).logits, model(**each.inputs).logits, rtol=1e-4, atol=1e-4)
        seen += each.numbers
    assert sorted(seen) == list(range(30))


def test_every_picture_is_opened_and_encoded_once(host: Any, asked: Any) -> None:
    opened: list[int] = []
    encoded: list[int] = []

    def read(seed: int) -> Image.Image:
        opened.append(seed)
        return READ(seed)

    handle = host[0].model.vision_tower.register_forward_hook(lambda _, args, out: encoded.append(len(out[0])))
    try:
        with torch.inference_mode():
            sizes = [len(each.numbers) for each in batches(*host, asked, read, batch=4)]
    finally:
        handle.remove()
    assert max(Counter(opened).values()) == 1 and sum(encoded) == len(opened) == 10
    assert max(sizes) <= 4 and sum(sizes) == 30


@pytest.fixture(scope="module")
def alone(host: Any, asked: Any) -> list[str]:
    """Answers of four words at most, one question at a time."""
    return answer_questions(*host, asked, READ, batch=1, max_new_tokens=4)


@pytest.mark.parametrize("pixels", [False, True])
def test_answers_depend_neither_on_the_batch_nor_on_the_route_of_the_picture(
    host: Any, asked: Any, alone: list[str], pixels: bool
) -> None:
    assert len(set(alone)) > 5
    told: list[int] = []
    options: dict[str, Any] = {"batch": 7, "max_new_tokens": 4, "pixels": pixels, "on_batch": told.append}
    assert answer_questions(*host, asked, READ, **options) == alone
    assert sum(told) == 30


def test_one_answer_is_the_greedy_continuation_of_the_chat(host: Any) -> None:
    model, processor = host
    image = Image.open(sample_path("coffee"))
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "how many things are there ?"}]}],
        add_generation_prompt=True,
    )
    inputs = processor(images=[image], text=[text], return_tensors="pt")
    ids: Any = inputs["input_ids"]
    spoken: list[int] = []
    with torch.inference_mode():
        for _ in range(4):
            spoken.append(int(model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0, -1].argmax()))
            if spoken[-1] == model.generation_config.eos_token_id:
                break
            ids = torch.cat([ids, torch.tensor([spoken[-1:]])], 1)
    expected = processor.tokenizer.decode(spoken, skip_special_tokens=True).strip()
    for picture in (image, sample_path("coffee")):
        question = VisualQuestion(picture, "how many things are there ?")
        assert answer_questions(model, processor, [question], max_new_tokens=4) == [expected]


def test_a_template_that_begins_with_the_first_token_does_not_get_a_second(host: Any, asked: Any) -> None:
    model, processor = tiny_micro()
    processor.chat_template = "<s> " + processor.chat_template
    with torch.inference_mode():
        for pixels in (False, True):
            (each,) = batches(model, processor, asked[:1], READ, pixels=pixels)
            assert each.inputs["input_ids"][0].tolist().count(processor.tokenizer.bos_token_id) == 1


def test_mistakes_are_named(host: Any, asked: Any) -> None:
    with pytest.raises(ValueError, match="batch: expected at least 1"):
        next(batches(*host, asked, READ, batch=0))
    model, processor = tiny_micro()
    with pytest.raises(ValueError, match=r"model\.eval"):
        next(batches(model.train(), processor, asked, READ))
    processor.chat_template = "{{ messages[0]['content'][1]['text'] }}"
    with pytest.raises(ValueError, match="one <image> in the prompt"):
        next(batches(model.eval(), processor, asked, READ))
