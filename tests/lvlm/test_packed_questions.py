import torch

from vistok.lvlm.micro import MicroSettings, make_model
from vistok.lvlm.packed_questions import NAME, packed_positions

SETTINGS = MicroSettings(side=64, vision_layers=1, text_layers=2)
PREFIX, SLOTS, LENGTH = 7, 3, 5


def hidden(language, embeds, **options):
    return language(inputs_embeds=embeds, use_cache=False, **options).last_hidden_state


def test_a_slot_computes_what_the_question_alone_computes_and_so_do_its_gradients():
    torch.manual_seed(0)
    language = make_model(SETTINGS).double().model.language_model
    embeds = torch.randn(2, PREFIX + SLOTS * LENGTH, SETTINGS.text_width, dtype=torch.float64)
    weights = torch.randn(2, SLOTS, LENGTH, SETTINGS.text_width, dtype=torch.float64)

    language.config._attn_implementation = "sdpa"
    alone = embeds.clone().requires_grad_()
    outputs = []
    for slot in range(SLOTS):
        own = alone[:, PREFIX + slot * LENGTH : PREFIX + (slot + 1) * LENGTH]
        outputs.append(hidden(language, torch.cat((alone[:, :PREFIX], own), dim=1))[:, PREFIX:])
    expected = torch.stack(outputs, dim=1)
    (expected * weights).sum().backward()

    language.config._attn_implementation = NAME
    packed = embeds.clone().requires_grad_()
    positions = packed_positions(2, PREFIX, SLOTS, LENGTH)
    found = hidden(language, packed, position_ids=positions, packing=(PREFIX, LENGTH))[:, PREFIX:]
    found = found.unflatten(1, (SLOTS, LENGTH))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    (found * weights).sum().backward()
    torch.testing.assert_close(packed.grad, alone.grad, rtol=1e-8, atol=1e-8)


def test_a_dropped_token_is_one_that_a_pruner_took_away_and_left_the_positions_of_the_rest():
    torch.manual_seed(0)
    language = make_model(SETTINGS).double().model.language_model
    embeds = torch.randn(2, PREFIX + SLOTS * LENGTH, SETTINGS.text_width, dtype=torch.float64)
    dropped = torch.zeros(2, PREFIX, dtype=torch.bool)
    dropped[:, [2, 5]] = True
    kept = (~dropped[0]).nonzero().flatten()

    language.config._attn_implementation = NAME
    packing = {"packing": (PREFIX, LENGTH), "dropped": dropped}
    found = hidden(language, embeds, position_ids=packed_positions(2, PREFIX, SLOTS, LENGTH), **packing)[:, -LENGTH:]
    assert not found.isnan().any()

    language.config._attn_implementation = "sdpa"
    left = torch.cat((embeds[:, kept], embeds[:, -LENGTH:]), dim=1)
    positions = torch.cat((kept, torch.arange(PREFIX, PREFIX + LENGTH))).expand(2, -1)
    mask = torch.ones(2, left.shape[1])
    expected = hidden(language, left, position_ids=positions, attention_mask=mask)[:, -LENGTH:]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_positions_of_every_slot_go_on_from_the_prefix():
    assert packed_positions(1, 2, 2, 3)[0].tolist() == [0, 1, 2, 3, 4, 2, 3, 4]
