"""The published string tables, on tokenizers of three kinds."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vistok.lvlm import token_families
from vistok.lvlm.new_rows import attach
from vistok.lvlm.vocabulary import VocabMap

from .vocabulary_fixtures import SPECIAL, TOKENIZERS, llama, word_tokenizer

TABLES = {
    "seed": (token_families.seed, 8194, "<img_00000>", "<img_08191>"),
    "emu3": (token_families.emu3, 32768, "<|visual token 000000|>", "<|visual token 032767|>"),
    "depth": (token_families.depth, 130, "<DEPTH_0>", "<DEPTH_127>"),
    "pixel": (token_families.pixel, 336, "<PIXEL_0>", "<PIXEL_335>"),
    "loc": (token_families.loc, 1024, "<loc0000>", "<loc1023>"),
    "seg": (token_families.seg, 128, "<seg000>", "<seg127>"),
    "florence_loc": (token_families.florence_loc, 1000, "<loc_0>", "<loc_999>"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_its_strings_in_order(name):
    make, count, first, last = TABLES[name]
    family = make()
    assert family.name == name and len(family.strings) == count
    assert (family.codes[0], family.codes[-1]) == (first, last)


def test_depth_begins_with_its_markers():
    assert token_families.depth(4).strings == (
        "<DEPTH_START>", "<DEPTH_END>", "<DEPTH_0>", "<DEPTH_1>", "<DEPTH_2>", "<DEPTH_3>"
    )  # fmt: skip


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_ids_follow_one_another_and_text_comes_back(kind):
    tokenizer = TOKENIZERS[kind]()
    before = len(tokenizer)
    families = [token_families.depth(), token_families.pixel(), token_families.loc(), token_families.seg()]

    attach(tokenizer, llama(before), families)
    strings = [string for family in families for string in family.strings]
    assert tokenizer.convert_tokens_to_ids(strings) == list(range(before, before + 130 + 336 + 1024 + 128))
    image = "".join(["<DEPTH_START>", "<DEPTH_5>", "<DEPTH_127>", "<DEPTH_END>", "<loc0007><loc1023><seg001>"])
    ids = tokenizer(image, add_special_tokens=False).input_ids
    assert [tokenizer.convert_ids_to_tokens(number) for number in ids] == [
        "<DEPTH_START>", "<DEPTH_5>", "<DEPTH_127>", "<DEPTH_END>", "<loc0007>", "<loc1023>", "<seg001>"
    ]  # fmt: skip
    assert "DEPTH_127" in tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["byte_level", "sentence_piece"])
def test_text_around_new_strings_comes_back_exactly(kind):

    tokenizer = TOKENIZERS[kind]()
    attach(tokenizer, llama(len(tokenizer)), [token_families.pixel()])
    text = "a box (<PIXEL_3>,<PIXEL_40>,<PIXEL_335>,<PIXEL_0>) b"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text


def test_seed_follows_the_words_of_llama_whatever_their_number():
    tokenizer = word_tokenizer()

    attachment = attach(tokenizer, llama(), [token_families.seed(8)])
    found = attachment.maps["seed"]
    assert found.codes == range(60, 68) and (found.begin, found.end) == ((68,), (69,))


def chameleon_name(code):
    return "IMGIMG" + "".join("ABCDEFGHIJ"[int(digit)] for digit in str(code)) + "Z"


def vocabulary_tokenizer(words):
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def test_chameleon_reads_codes_from_letters_in_any_order_of_ids():
    order = [3, 11, 0, 7, 1, 10, 2, 4, 9, 5, 8, 6]
    words = [*SPECIAL.values(), *(chameleon_name(code) for code in order), "<racm3:break>", "<eoss>"]
    tokenizer = vocabulary_tokenizer(words)
    found = VocabMap.of(tokenizer, token_families.chameleon(tokenizer))
    assert found.codes == tuple(4 + order.index(code) for code in range(12))
    assert (found.begin, found.end) == ((16,), (17,))


def test_chameleon_agrees_with_transformers():
    from transformers.models.chameleon.modeling_chameleon import ChameleonImageVocabularyMapping

    order = [3, 11, 0, 7, 1, 10, 2, 4, 9, 5, 8, 6]
    tokenizer = vocabulary_tokenizer(
        [*SPECIAL.values(), "<image>", *(chameleon_name(code) for code in order), "<racm3:break>", "<eoss>"]
    )
    theirs = ChameleonImageVocabularyMapping(tokenizer.get_vocab())
    ours = VocabMap.of(tokenizer, token_families.chameleon(tokenizer))
    assert theirs.img2bpe == dict(enumerate(ours.codes))


@pytest.mark.parametrize("names", [[], ["IMGIMGAZ", "IMGIMGCZ"], ["IMGIMGAZ", "IMGIMGxZ"]])
def test_a_tokenizer_without_all_codes_of_chameleon_says_so(names):
    with pytest.raises(ValueError, match="each once, got"):
        token_families.chameleon(vocabulary_tokenizer([*SPECIAL.values(), *names, "<racm3:break>", "<eoss>"]))


def test_emu3_agrees_with_transformers_on_rows_with_an_end():
    from transformers.models.emu3.modeling_emu3 import Emu3ImageVocabularyMapping

    family = token_families.emu3(16)
    words = [*SPECIAL.values(), *family.markers, "<image>", *reversed(family.codes)]
    tokenizer = vocabulary_tokenizer(words)
    codes = torch.tensor([[1, 15, 3], [0, 7, 7]])
    ours = VocabMap.of(tokenizer, family).span(codes, size=[tokenizer.unk_token_id])
    theirs = Emu3ImageVocabularyMapping(tokenizer.get_vocab()).convert_img2bpe(codes)
    assert ours[3:-2].tolist() == theirs.flatten().tolist()
    around = tokenizer.convert_ids_to_tokens([*ours[:3].tolist(), *ours[-2:].tolist()])
    assert around == ["<|image start|>", "<unk>", "<|image token|>", "<|extra_201|>", "<|image end|>"]


def test_a_tokenizer_without_the_strings_says_what_adds_them():
    with pytest.raises(ValueError, match=r"130 of 130 are missing, the first '<DEPTH_START>'.*attach"):
        VocabMap.of(word_tokenizer(), token_families.depth())
