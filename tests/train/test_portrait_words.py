"""Sequences of pictures and words, and a small model that names and draws in them."""

import pytest
import torch
from torch import nn

from vistok.layers.digit_codes import digit_losses
from vistok.layers.multi_token_heads import shifted
from vistok.train.portrait_reader import ATTRIBUTES
from vistok.train.portrait_words import WORDS, PictureWriter, sequences

SIZES = (3, 2)


def test_a_sequence_by_hand_in_both_orders():
    ids, shown = torch.tensor([[4]]), torch.tensor([[1, 0, 2, 3]])
    words = [
        [-1, -1, WORDS.index(values[place])] for values, place in zip(ATTRIBUTES.values(), [1, 0, 2, 3], strict=True)
    ]
    picture, begin, image = [1, 1, -1], [-1, -1, 0], [-1, -1, 1]
    assert sequences(ids, shown, SIZES, True)[0].tolist() == [begin, picture, image, *words]
    assert sequences(ids, shown, SIZES, False)[0].tolist() == [begin, *words, image, picture]
    assert sequences(ids, None, SIZES, True)[0].tolist() == [begin, picture]


def writer():
    from vistok.lvlm.tiny_llama import TinySettings, untrained_llama

    torch.manual_seed(0)
    settings = TinySettings(width=32, layers=2, heads=2)
    return PictureWriter(untrained_llama(settings, 1), 32, SIZES)


@pytest.mark.slow
def test_a_model_that_has_learned_two_pictures_names_and_draws_them():
    model = writer()
    ids, shown = torch.tensor([[0, 1, 2], [5, 4, 3]]), torch.tensor([[0, 0, 0, 0], [1, 2, 3, 4]])
    batch = [sequences(ids, shown, SIZES, order) for order in (True, False)]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(60):
        loss = torch.stack(
            [digit_losses(model.unembed(model(part)[1]), shifted(part, 1), model.sizes).mean() for part in batch]
        ).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert torch.equal(model.eval().name(ids), shown)
    drawn = model.draw(shown, 3, 0, torch.Generator())
    assert torch.equal(drawn, sequences(ids, None, SIZES, True)[:, 1:, :-1])


def test_the_trunk_is_what_the_last_layer_reads():
    model = writer()
    trunk, last = model(sequences(torch.tensor([[3, 1]]), None, SIZES, True))
    layer = model.llama.model.layers[-1]
    seen = []
    layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(sequences(torch.tensor([[3, 1]]), None, SIZES, True))
    assert torch.equal(trunk, seen[0]) and trunk.shape == last.shape
