"""Pairs and longer sequences of images and texts as training batches."""

import pytest
import torch

from vistok.lvlm.image_text_collator import IGNORED, CaptionedTokens, ImageTextCollator
from vistok.lvlm.new_rows import attach
from vistok.lvlm.token_families import seed
from vistok.lvlm.vocabulary import TokenFamily, VocabMap
from vistok.tokens import TokenSpec, TokenTensor

from .vocabulary_fixtures import llama, word_tokenizer

BOS, EOS, PAD = 0, 1, 3  # the order of the special words in the fixture
FIRST, BOI, EOI = 60, 68, 69  # codes follow the 60 words


@pytest.fixture
def tokenizer():
    made = word_tokenizer()
    attach(made, llama(), [seed(8)])
    assert (made.bos_token_id, made.eos_token_id, made.pad_token_id) == (BOS, EOS, PAD)
    return made


@pytest.fixture
def collate(tokenizer):
    def make(**settings):
        return ImageTextCollator(tokenizer, VocabMap.of(tokenizer, seed(8)), **settings)

    return make


def words(*places):
    return [4 + place for place in places]


def image(codes, grid=(), lengths=None):
    spec = TokenSpec("t", codebook_sizes=(8,), grid=grid)
    return TokenTensor(spec=spec, indices=torch.tensor([codes]), lengths=lengths)


def test_a_pair_goes_image_first_or_text_first_with_bos_and_eos_and_padding_on_the_right(collate):
    pair, longer = (torch.tensor([0, 7]), "w1 w2"), ("w3 w4 w5", torch.tensor([2, 2]))
    batch = collate(reverse_ratio=1.0)([pair, longer])
    naming = [BOS, BOI, FIRST, FIRST + 7, EOI, *words(1, 2), EOS]
    assert batch["input_ids"][0].tolist() == [*naming, PAD]
    assert batch["labels"][0].tolist() == [*naming, IGNORED]
    assert batch["attention_mask"].tolist() == [[1] * 8 + [0], [1] * 9]
    assert batch["input_ids"][1].tolist() == [BOS, BOI, FIRST + 2, FIRST + 2, EOI, *words(3, 4, 5), EOS]
    drawing = collate(reverse_ratio=0.0)([pair])
    assert drawing["input_ids"].tolist() == [[BOS, *words(1, 2), BOI, FIRST, FIRST + 7, EOI, EOS]]


def test_half_of_the_pairs_go_either_way_and_equal_generators_give_equal_batches(collate):
    samples = [(torch.tensor([1]), "w1")] * 400
    batches = [collate(generator=torch.Generator().manual_seed(5))(samples)["input_ids"] for _ in range(2)]
    assert torch.equal(*batches)
    assert 150 < int((batches[0][:, 1] == BOI).sum()) < 250
    quarter = collate(reverse_ratio=0.25)(samples)["input_ids"]
    assert 70 < int((quarter[:, 1] == BOI).sum()) < 130


@pytest.mark.parametrize(("ratio", "masked"), [(1.0, 5), (0.0, 3)])
def test_what_comes_first_can_go_without_labels(collate, ratio, masked):
    batch = collate(reverse_ratio=ratio, mask_first=True)([(torch.tensor([0, 7]), "w1 w2")])
    assert batch["labels"][0, :masked].tolist() == [IGNORED] * masked
    assert torch.equal(batch["labels"][0, masked:], batch["input_ids"][0, masked:])


def test_longer_sequences_keep_their_order_and_all_labels(collate):
    parts = ("w1", torch.tensor([3]), "w2", torch.tensor([4]))
    batch = collate(mask_first=True)([parts])
    expected = [BOS, *words(1), BOI, FIRST + 3, EOI, *words(2), BOI, FIRST + 4, EOI, EOS]
    assert batch["input_ids"].tolist() == batch["labels"].tolist() == [expected]


def test_a_token_tensor_is_an_image_up_to_its_length(collate):
    ragged = image([5, 6, -1], lengths=torch.tensor([2]))
    batch = collate(reverse_ratio=1.0)([(ragged, "w1")])
    assert batch["input_ids"][0, 1:5].tolist() == [BOI, FIRST + 5, FIRST + 6, EOI]


def test_rows_with_an_end_come_from_the_grid_and_their_size_is_said_in_text():
    strings = ("<a>", "<b>", "<0>", "<1>", "<;>", "<i>")
    family = TokenFamily("grid", strings, begin=("<a>",), end=("<b>",), row_end="<;>", size_end="<i>")
    tokenizer = word_tokenizer(("2*3",))
    attach(tokenizer, llama(61), [family])
    vocabulary = VocabMap.of(tokenizer, family)
    batch = ImageTextCollator(tokenizer, vocabulary, 1.0)([(image([0, 1, 1, 1, 0, 0], grid=(2, 3)), "w1")])
    said = tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())
    assert " ".join(said) == "<s> <a> 2*3 <i> <0> <1> <1> <;> <1> <0> <0> <;> <b> w1 </s>"
    with pytest.raises(ValueError, match="all tokens of a grid"):
        ImageTextCollator(tokenizer, vocabulary, 1.0)([(image([0, 1], grid=(2, 3)), "w1")])


def test_samples_of_a_store_are_its_captioned_images(collate):
    class Store:
        """What is used of a TokenStore: rows, and samples by place."""

        rows = [{"caption": "w1"}, {"caption": None}, {"caption": "w2"}]

        def __getitem__(self, place):
            return image([place, place])

    samples = CaptionedTokens(Store())
    assert len(samples) == 2
    batch = collate(reverse_ratio=1.0)(list(samples))
    assert batch["input_ids"][1].tolist() == [BOS, BOI, FIRST + 2, FIRST + 2, EOI, *words(2), EOS]


def test_a_model_learns_from_a_batch(collate, tokenizer):
    model = llama(70).train()
    batch = collate()([(torch.tensor([1, 2]), "w1 w2"), (torch.tensor([3]), "w1")])
    loss = model(**batch).loss
    loss.backward()
    assert torch.isfinite(loss) and model.get_input_embeddings().weight.grad[FIRST + 1].any()


@pytest.mark.parametrize(
    ("samples", "settings", "message"),
    [
        ([], {}, "at least one sample"),
        (["w1"], {}, "sample 0: expected a sequence of texts"),
        ([("w1",), ()], {}, "sample 1"),
        ([(torch.tensor([8]), "w1")], {}, r"codes in 0\.\.7"),
        ([(torch.tensor([1, 2]), "w1")], {"max_length": 6}, "at most max_length=6 ids, got 7"),
        ([(image([[1, 2], [3, 4]]), "w1")], {}, "one codebook"),
    ],
)
def test_what_is_no_sample_is_named(samples, settings, message, collate):
    with pytest.raises(ValueError, match=message):
        collate(**settings)(samples)


def test_a_ratio_out_of_range_is_named(collate):
    with pytest.raises(ValueError, match="reverse_ratio: expected 0 to 1, got 2"):
        collate(reverse_ratio=2)
