import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPVisionModel, LlamaModel, LlavaForConditionalGeneration

from vistok.data.scenes import KINDS, balanced_questions, make_layout, render
from vistok.data.scenes.captions import caption
from vistok.lvlm.micro import MicroSettings, make_model, make_processor, make_tokenizer, vocabulary

SMALL = MicroSettings(vision_layers=4, text_layers=2)


def chat(question):
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]


def test_it_is_a_llava_with_enough_layers_for_every_published_pruning_depth():
    model = make_model(MicroSettings())
    assert isinstance(model, LlavaForConditionalGeneration)
    assert isinstance(model.model.vision_tower, CLIPVisionModel)
    assert isinstance(model.model.language_model, LlamaModel)
    text = model.config.text_config
    assert model.config.vision_config.num_hidden_layers >= 4 and text.num_hidden_layers >= 8
    assert text.num_key_value_heads < text.num_attention_heads
    assert MicroSettings().visual_tokens == 144


@pytest.mark.parametrize("split", ["train", "test", "heldout"])
def test_every_word_of_questions_answers_and_captions_is_in_the_vocabulary(split):
    tokenizer = make_tokenizer()
    for question in balanced_questions(split, 20 * len(KINDS)):
        for text in (question.text, question.answer, caption(make_layout(question.seed))):
            ids = tokenizer(text, add_special_tokens=False).input_ids
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text


def test_punctuation_needs_no_space_and_an_unknown_word_is_unk():
    tokenizer = make_tokenizer()
    assert tokenizer("what color is the star?").input_ids == tokenizer("what color is the star ?").input_ids
    assert tokenizer("zebra").input_ids == [tokenizer.bos_token_id, tokenizer.unk_token_id]


def test_words_are_there_once():
    assert len(set(vocabulary())) == len(vocabulary())


def test_the_processor_survives_saving_and_makes_one_placeholder_for_each_visual_token(tmp_path):
    processor = make_processor(MicroSettings())
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    image = Image.fromarray(render(3).image)
    for made in (processor, loaded):
        prompt = made.apply_chat_template(chat("what color is the star ?"), add_generation_prompt=True)
        inputs = made(text=prompt, images=image, return_tensors="pt")
        text = made.tokenizer.decode(inputs.input_ids[0]).replace("<image> ", "")
        assert text == "<s> user : what color is the star ? assistant :"
        assert int((inputs.input_ids == made.tokenizer.convert_tokens_to_ids("<image>")).sum()) == 144


def test_pixels_of_a_picture_of_the_right_size_pass_unchanged():
    image = render(3).image
    pixels = make_processor(SMALL)(text="<image>", images=Image.fromarray(image), return_tensors="pt").pixel_values
    expected = torch.from_numpy(image).permute(2, 0, 1).float() / 127.5 - 1
    torch.testing.assert_close(pixels[0], expected, atol=1e-6, rtol=0)


def test_generate_answers_through_the_chat_template():
    torch.manual_seed(0)
    processor, model = make_processor(SMALL), make_model(SMALL).eval()
    prompt = processor.apply_chat_template(chat("what color is the star ?"), add_generation_prompt=True)
    inputs = processor(text=prompt, images=Image.fromarray(render(3).image), return_tensors="pt")
    answer = model.generate(**inputs, max_new_tokens=2, do_sample=False)[0, inputs.input_ids.shape[1] :]
    assert 1 <= len(answer) <= 2 and set(processor.tokenizer.decode(answer).split()) <= set(vocabulary())
