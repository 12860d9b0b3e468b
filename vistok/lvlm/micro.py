"""A LLaVA-shaped model small enough to train and to measure on a laptop: tiny CLIP tower, tiny Llama, word tokenizer.

It answers questions about the scenes of `vistok.data.scenes` and nothing else; every class is transformers' own, so
what runs on it runs on any LLaVA. 96 x 96 pixels in patches of 8: 144 visual tokens and a class token.
"""

from dataclasses import dataclass

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Punctuation, Sequence, WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from vistok.data.scenes.layout import COLORS, GLYPHS, SHAPES, SIZES, TEXTURES
from vistok.data.scenes.questions import ANSWERS

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
_ROLES = ("user", "assistant", ":")
# fmt: off
_TEMPLATE_WORDS = (
    "?", ",", ".", "a", "and", "are", "color", "farther", "farthest", "how", "in", "is", "larger", "left", "looks",
    "many", "nearer", "nearest", "above", "below", "of", "on", "or", "right", "shape", "shapes", "sign", "smaller",
    "texture", "than", "the", "then", "there", "thing", "things", "what", "with",
)
# fmt: on
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : "
    "{% if message['content'] is string %}{{ message['content'] }} {% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}</s> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)


@dataclass(frozen=True)
class MicroSettings:
    """Sizes of the model; side and patch in pixels."""

    side: int = 96
    patch: int = 8
    vision_width: int = 128
    vision_layers: int = 6
    vision_heads: int = 4
    text_width: int = 128
    text_layers: int = 8
    text_heads: int = 4
    text_kv_heads: int = 2
    mlp_ratio: int = 3

    @property
    def visual_tokens(self) -> int:
        return (self.side // self.patch) ** 2


def vocabulary() -> tuple[str, ...]:
    """All words, the special ones first; the order fixes the ids."""
    words = [*SPECIAL, *_ROLES, *_TEMPLATE_WORDS, *COLORS, *SHAPES, *TEXTURES, *SIZES, *GLYPHS]
    words += [answer for answers in ANSWERS.values() for answer in answers]
    words += ["column", "row", "far"]
    return tuple(dict.fromkeys(words))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Words and punctuation marks to ids, `<s>` in front; a word it does not know is `<unk>`."""
    words = {word: number for number, word in enumerate(vocabulary())}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Sequence([WhitespaceSplit(), Punctuation()])
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", words["<s>"])])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def make_processor(settings: MicroSettings) -> LlavaProcessor:
    """Images and chats to model inputs, with the template `user : <image> question assistant : answer </s>`."""
    size = {"height": settings.side, "width": settings.side}
    images = CLIPImageProcessor(
        size=size, crop_size=size, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_convert_rgb=True
    )
    return LlavaProcessor(  # type: ignore[no-untyped-call]
        images,
        make_tokenizer(),
        patch_size=settings.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def make_model(settings: MicroSettings) -> LlavaForConditionalGeneration:
    """The untrained model; weights from torch's global generator."""
    words = vocabulary()
    vision = CLIPVisionConfig(
        hidden_size=settings.vision_width,
        intermediate_size=settings.mlp_ratio * settings.vision_width,
        num_hidden_layers=settings.vision_layers,
        num_attention_heads=settings.vision_heads,
        image_size=settings.side,
        patch_size=settings.patch,
        projection_dim=settings.text_width,
    )
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=settings.text_width,
        intermediate_size=settings.mlp_ratio * settings.text_width,
        num_hidden_layers=settings.text_layers,
        num_attention_heads=settings.text_heads,
        num_key_value_heads=settings.text_kv_heads,
        max_position_embeddings=512,
        pad_token_id=words.index("<pad>"),
        bos_token_id=words.index("<s>"),
        eos_token_id=words.index("</s>"),
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=words.index("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=settings.visual_tokens,
    )
    return LlavaForConditionalGeneration(config)
