"""Attaching keeps old rows to the bit and never shrinks; detaching leaves no trace."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from vistok.lvlm import row_starts
from vistok.lvlm.new_rows import attach, detach, matrices
from vistok.lvlm.token_families import depth, loc
from vistok.lvlm.vocabulary import TokenFamily

from .vocabulary_fixtures import MODELS, WORDS, llama, word_tokenizer

SMALL = TokenFamily("small", ("<a>", "<b>", "<0>", "<1>", "<2>", "<3>"), ("<a>",), ("<b>",))
PADDINGS = {"exact": WORDS, "padded": 128, "some spare rows": WORDS + 3}


def state(tokenizer, model):
    return tokenizer.backend_tokenizer.to_str(), {key: value.clone() for key, value in model.state_dict().items()}


def same(tokenizer, model, before):
    text, weights = before
    now = model.state_dict()
    return (
        tokenizer.backend_tokenizer.to_str() == text
        and weights.keys() == now.keys()
        and all(torch.equal(value, now[key]) for key, value in weights.items())
    )


@pytest.mark.parametrize("rows", PADDINGS.values(), ids=PADDINGS)
@pytest.mark.parametrize("kind", MODELS)
def test_old_rows_keep_their_bits_and_nothing_shrinks(kind, rows):
    tokenizer, model = word_tokenizer(), MODELS[kind](rows)
    before = {name: matrix.detach().clone() for name, matrix in matrices(model).items()}
    attachment = attach(tokenizer, model, [SMALL])
    assert attachment.new == tuple(range(WORDS, WORDS + 6))
    text = model.config.get_text_config()
    for name, matrix in matrices(model).items():
        assert len(matrix) == (128 if rows == 128 else 128 if WORDS + 6 > 64 else 64) == text.vocab_size
        assert torch.equal(matrix[:WORDS], before[name][:WORDS])
        spare = slice(WORDS + 6, rows)
        assert torch.equal(matrix[spare], before[name][spare])
    assert ("head" in matrices(model)) == (kind != "tied")
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == (kind == "tied")


@pytest.mark.parametrize("rows", PADDINGS.values(), ids=PADDINGS)
@pytest.mark.parametrize("kind", MODELS)
def test_detach_leaves_tokenizer_and_model_as_they_were_to_the_bit(kind, rows):
    tokenizer, model = word_tokenizer(), MODELS[kind](rows)
    before, size = state(tokenizer, model), model.config.get_text_config().vocab_size
    attachment = attach(tokenizer, model, [SMALL], start=row_starts.normal())
    assert not same(tokenizer, model, before)
    detach(tokenizer, model, attachment)
    assert same(tokenizer, model, before) and model.config.get_text_config().vocab_size == size
    assert tokenizer.convert_tokens_to_ids("<0>") == tokenizer.unk_token_id and len(tokenizer) == WORDS


def test_attaching_twice_does_nothing_the_second_time():
    tokenizer, model = word_tokenizer(), llama()
    first = attach(tokenizer, model, [SMALL], start=row_starts.normal())
    before = state(tokenizer, model)
    second = attach(tokenizer, model, [SMALL], start=row_starts.normal(), generator=torch.Generator().manual_seed(9))
    assert second.new == () and second.ids == first.ids and second.maps == first.maps
    assert same(tokenizer, model, before)


def test_a_model_behind_its_tokenizer_gets_the_rows_it_lacks():
    tokenizer, model = word_tokenizer(), llama()
    attach(tokenizer, llama(), [SMALL])
    attachment = attach(tokenizer, model, [SMALL])
    assert attachment.new == tuple(range(WORDS, WORDS + 6)) and len(matrices(model)["embedding"]) == 128
    detach(tokenizer, model, attachment)
    assert len(matrices(model)["embedding"]) == WORDS and len(tokenizer) == WORDS + 6


def test_a_second_family_follows_the_first_and_detaches_before_it():
    tokenizer, model = word_tokenizer(), llama()
    before = state(tokenizer, model)
    first = attach(tokenizer, model, [SMALL])
    second = attach(tokenizer, model, [SMALL, depth(8)])
    assert second.maps["depth"].codes == range(68, 76) and second.new == tuple(range(66, 76))
    with pytest.raises(ValueError, match="reverse order"):
        detach(tokenizer, model, first)
    detach(tokenizer, model, second)
    detach(tokenizer, model, first)
    assert same(tokenizer, model, before)


def test_spare_rows_are_reused_or_it_is_said_how_many_there_are():
    tokenizer, model = word_tokenizer(), llama(70)
    attach(tokenizer, model, [SMALL], reuse_unused=True)
    assert len(matrices(model)["embedding"]) == 70
    with pytest.raises(ValueError, match="expected 130 spare rows to reuse, got 4"):
        attach(tokenizer, model, [depth()], reuse_unused=True)
    assert len(tokenizer) == WORDS + 6


def test_each_family_starts_its_codes_as_it_is_told_and_its_markers_at_the_mean():
    tokenizer, model = word_tokenizer(), llama()
    values = torch.arange(4.0)[:, None].expand(4, 16)
    start = {"small": lambda old, count, generator: values, "loc": lambda old, count, generator: -values}
    attachment = attach(tokenizer, model, [SMALL, loc(4)], start=start)
    for matrix in matrices(model).values():
        assert torch.equal(matrix[list(attachment.maps["small"].codes)], values)
        assert torch.equal(matrix[list(attachment.maps["loc"].codes)], -values)
        markers = matrix[[attachment.ids["<a>"], attachment.ids["<b>"]]]
        assert (markers - matrix[:WORDS].mean(0)).abs().max() < 0.01
        assert torch.allclose(matrix[70:], matrix[:WORDS].mean(0))


def test_torchs_own_generator_is_left_alone_and_equal_generators_give_equal_rows():
    rows = []
    for _ in range(2):
        tokenizer, model = word_tokenizer(), llama()
        before = torch.get_rng_state()
        attach(tokenizer, model, [SMALL], start=row_starts.normal(), generator=torch.Generator().manual_seed(3))
        assert torch.equal(before, torch.get_rng_state())
        rows.append(matrices(model)["embedding"].detach())
    assert torch.equal(*rows)


def test_special_strings_vanish_from_decoded_text_and_plain_ones_stay():
    for special, text in ((False, "w1 <0> w2"), (True, "w1 w2")):
        tokenizer = word_tokenizer()
        attach(tokenizer, llama(), [SMALL], special=special)
        assert tokenizer.decode(tokenizer("w1 <0> w2").input_ids, skip_special_tokens=True) == text


def test_a_head_with_a_bias_grows_and_shrinks_with_it():
    model = llama()
    model.lm_head = torch.nn.Linear(16, WORDS)
    tokenizer, bias = word_tokenizer(), model.lm_head.bias.detach().clone()
    attachment = attach(tokenizer, model, [SMALL])
    assert torch.equal(matrices(model)["bias"][:WORDS], bias)
    assert (matrices(model)["bias"][WORDS:] - bias.mean()).abs().max() < 0.01
    detach(tokenizer, model, attachment)
    assert torch.equal(model.lm_head.bias, bias)


def test_a_frozen_model_stays_frozen():
    model = llama().requires_grad_(False)
    attach(word_tokenizer(), model, [SMALL])
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_tokenizer_in_python_can_be_given_tokens_but_cannot_forget_them(tmp_path):
    class Slow:
        """What `attach` uses of a tokenizer, without a fast backend."""

        def __init__(self):
            self.known = {f"w{place}": place for place in range(WORDS)}

        def __len__(self):
            return len(self.known)

        def get_vocab(self):
            return dict(self.known)

        def add_tokens(self, tokens):
            for token in tokens:
                self.known.setdefault(str(token), len(self.known))

        def convert_tokens_to_ids(self, strings):
            return [self.known[string] for string in strings]

    tokenizer, model = Slow(), llama()
    attachment = attach(tokenizer, model, [SMALL])
    with pytest.raises(ValueError, match="Slow cannot forget tokens; load"):
        detach(tokenizer, model, attachment)


def test_gpt2_is_no_exception():
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=WORDS, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2)
    )
    tokenizer = word_tokenizer()
    before = state(tokenizer, model)
    detach(tokenizer, model, attach(tokenizer, model, [SMALL]))
    assert same(tokenizer, model, before)


@pytest.mark.parametrize(
    ("families", "extra", "message"),
    [
        ([SMALL], ("<1>",), r"all 6 strings of family 'small' or none, 5 are missing, the first '<a>'"),
        ([SMALL, TokenFamily("other", ("<9>", "<1>"))], (), "'<1>' is in two"),
        ([TokenFamily("rows", ("<x>",), row_end="<eol>")], (), "marker '<eol>'.*in neither"),
    ],
)
def test_what_cannot_be_attached_is_named_and_changes_nothing(families, extra, message):
    tokenizer, model = word_tokenizer(extra), llama(WORDS + len(extra))
    before = state(tokenizer, model)
    with pytest.raises(ValueError, match=message):
        attach(tokenizer, model, families)
    assert same(tokenizer, model, before)


def test_a_start_of_another_shape_is_refused_and_changes_nothing():
    tokenizer, model = word_tokenizer(), llama(WORDS + 2)
    before = state(tokenizer, model)
    with pytest.raises(ValueError, match=r"family 'small': expected rows \[4, 16\], got \[1, 16\]"):
        attach(tokenizer, model, [SMALL], start=lambda old, count, generator: old[:1])
    assert same(tokenizer, model, before)
