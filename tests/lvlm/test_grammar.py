"""Spans that a model generates under the grammar are whole, whatever the model wants and however it is searched."""

import pytest
import torch
from transformers import LogitsProcessorList

from vistok.lvlm import token_families
from vistok.lvlm.grammar import PerceptionGrammar
from vistok.lvlm.new_rows import attach
from vistok.lvlm.span_rules import box_rule, depth_rule, loc_rule
from vistok.lvlm.vocabulary import TokenFamily, VocabMap

from .vocabulary_fixtures import TOKENIZERS, llama, word_tokenizer

FAMILIES = [token_families.depth(8), token_families.pixel(12), token_families.loc(16), token_families.seg(4)]
SEARCHES = {"greedy": {}, "sampling": {"do_sample": True}, "beams": {"num_beams": 3}}
EOS = 2


@pytest.fixture(scope="module")
def host():
    """Tokenizer of words with brackets among them, model whose answers differ from prompt to prompt, attachment."""
    tokenizer = word_tokenizer(("(", ",", ")"))
    model = llama(len(tokenizer))
    attachment = attach(tokenizer, model, FAMILIES)
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, EOS
    return tokenizer, model, attachment


def prompts(count, seed=0):
    return torch.randint(4, 60, (count, 3), generator=torch.Generator().manual_seed(seed))


def generated(model, grammar, ids, new_tokens, **options):
    torch.manual_seed(0)
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, logits_processor=[grammar], **options
    )
    return [row[ids.shape[1] :] for row in made]


def until_end(row):
    stop = (row == EOS).nonzero().flatten()
    return row[: int(stop[0])] if len(stop) else row


def test_two_hundred_generated_depth_spans_are_well_formed_under_every_search(host):
    _, model, attachment = host
    codes, found = attachment.maps["depth"], 0
    for number, search in enumerate(SEARCHES.values()):
        grammar = PerceptionGrammar([depth_rule(codes, 6)], require=["depth"], eos=EOS)
        ids = torch.cat((prompts(67, number), torch.tensor(codes.begin).expand(67, 1)), 1)
        for row in generated(model, grammar, ids, 9, **search):
            whole = torch.cat((torch.tensor(codes.begin), row))
            assert len(codes.read_span(whole[:8])) == 6
            assert not (codes.is_code(whole[8:]) | (whole[8:] == codes.begin[0]) | (whole[8:] == codes.end[0])).any()
            found += 1
    assert found == 201


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_boxes_and_masks_are_whole_and_their_corners_in_order(host, search):
    tokenizer, model, attachment = host
    pixel, loc, seg = (attachment.maps[name] for name in ("pixel", "loc", "seg"))
    rules = [box_rule(tokenizer, FAMILIES[1], gap=1), loc_rule(loc, seg, gap=1)]
    begin = {"pixel": tokenizer.convert_tokens_to_ids("("), "loc": loc.codes[3]}
    for name, first in begin.items():
        ids = torch.cat((prompts(20), torch.full((20, 1), first)), 1)
        for row in generated(model, PerceptionGrammar(rules), ids, 20, **search):
            if name == "loc":
                box = loc.to_codes(torch.cat((ids[0, -1:], row[:3])))
                assert len(seg.to_codes(row[3:19])) == 16
            elif pixel.is_code(row[:1])[0]:
                box = pixel.to_codes(row[[0, 2, 4, 6]])
                assert tokenizer.convert_ids_to_tokens(row[[1, 3, 5, 7]].tolist()) == [",", ",", ",", ")"]
            else:
                continue
            assert box[2] > box[0] and box[3] > box[1]


def test_random_logits_give_exactly_start_hundred_codes_and_end():
    tokenizer = word_tokenizer()
    attachment = attach(tokenizer, llama(), [token_families.depth()])
    codes = attachment.maps["depth"]
    grammar = PerceptionGrammar([depth_rule(codes)], require=["depth"], eos=EOS)
    draw = torch.Generator().manual_seed(0)
    ids = torch.tensor([[5, 6], [7, 8]])
    for _ in range(140):
        scores = torch.randn(2, len(tokenizer), generator=draw)
        scores[:, EOS] = 9.0  # wants to end at once
        ids = torch.cat((ids, grammar(ids, scores).argmax(1, keepdim=True)), 1)
    for row in ids[:, 2:]:
        assert row[0] == codes.begin[0] and codes.is_code(row[1:101]).all() and row[101] == codes.end[0]
        assert (row[102:] == EOS).all(), "after the span it may end, and there is no second one"


def test_rows_of_a_batch_are_in_states_of_their_own(host):
    tokenizer, _, attachment = host
    depth, loc = attachment.maps["depth"], attachment.maps["loc"]
    rules = [depth_rule(depth, 2), box_rule(tokenizer, FAMILIES[1]), loc_rule(loc, attachment.maps["seg"])]
    start, end, comma = depth.begin[0], depth.end[0], tokenizer.convert_tokens_to_ids(",")
    opener, pixel = tokenizer.convert_tokens_to_ids("("), attachment.maps["pixel"].codes
    rows = torch.tensor(
        [
            [5, 6, start, depth.codes[1]],  # one more code
            [start, depth.codes[0], depth.codes[0], end],  # words, but no second map
            [5, opener, pixel[4], comma],  # y1, any
            [loc.codes[3], loc.codes[9], loc.codes[2], loc.codes[9]],  # not in order
        ]
    )
    grammar = PerceptionGrammar(rules, prompt_length=0)
    with pytest.raises(ValueError, match=r"row 3 has id \d+ at place 2, within 'loc'; pass prompt_length=4"):
        grammar(rows, torch.zeros(4, len(tokenizer)))
    rows[3, 2:] = torch.tensor([loc.codes[3], loc.codes[12]])
    open_ids = (PerceptionGrammar(rules)(rows, torch.zeros(4, len(tokenizer))) == 0).int()
    own = sum(len(rule.own) for rule in rules)
    assert open_ids[0].nonzero().flatten().tolist() == list(depth.codes)
    assert open_ids[1].sum() == len(tokenizer) - own + len(loc) and not open_ids[1, start]
    assert open_ids[2].nonzero().flatten().tolist() == list(pixel)
    assert open_ids[3].nonzero().flatten().tolist() == list(attachment.maps["seg"].codes)


def test_the_second_corner_of_a_box_is_masked_below_the_first(host):
    tokenizer, _, attachment = host
    loc = attachment.maps["loc"].codes
    for gap in (0, 1):
        rule = loc_rule(attachment.maps["loc"], gap=gap)
        ids = torch.tensor([[loc[3], loc[9]], [loc[14], loc[0]]])
        scores = PerceptionGrammar([rule])(ids, torch.zeros(2, len(tokenizer)))
        assert [row.isfinite().nonzero().flatten().tolist() for row in scores] == [
            list(loc[3 + gap :]), list(loc[14 + gap :])
        ]  # fmt: skip
    last = PerceptionGrammar([rule])(torch.tensor([[5]]), torch.zeros(1, len(tokenizer)))
    assert last[0, loc[14]] == 0 and last[0, loc[15]] == float("-inf"), "nothing would lie above the last bin"


def test_a_mask_may_lack_where_it_is_optional_but_is_never_cut(host):
    tokenizer, _, attachment = host
    loc, seg = attachment.maps["loc"], attachment.maps["seg"]
    grammar = PerceptionGrammar([loc_rule(loc, seg, optional_mask=True)])
    box = [loc.codes[0]] * 4
    scores = grammar(torch.tensor([box]), torch.zeros(1, len(tokenizer)))
    assert scores[0, 5] == 0 and scores[0, list(seg.codes)].eq(0).all() and scores[0, loc.codes[0]] == 0
    scores = grammar(torch.tensor([[*box, seg.codes[1]]]), torch.zeros(1, len(tokenizer)))
    assert scores[0].isfinite().nonzero().flatten().tolist() == list(seg.codes)


def test_beams_that_change_places_keep_their_states_and_only_new_ids_are_read(host, monkeypatch):
    tokenizer, _, attachment = host
    depth = attachment.maps["depth"]
    rule = depth_rule(depth, 3)
    scores = torch.zeros(3, len(tokenizer))
    grammar, fresh = PerceptionGrammar([rule]), PerceptionGrammar([rule])
    first = torch.tensor([[5, depth.begin[0]], [5, 6], [7, depth.begin[0]]])
    grammar(first, scores)
    second = torch.cat((first[[2, 0, 0]], torch.tensor([[depth.codes[1]], [depth.codes[2]], [depth.codes[0]]])), 1)
    expected = fresh(second, scores)
    steps = []
    advance = grammar.advance
    monkeypatch.setattr(grammar, "advance", lambda *given: steps.append(1) or advance(*given))
    assert torch.equal(grammar(second, scores), expected) and len(steps) == 3


def test_required_spans_take_the_probability_of_the_end_and_leave_the_rest(host):
    tokenizer, _, attachment = host
    depth, opener = attachment.maps["depth"], tokenizer.convert_tokens_to_ids("(")
    logits = torch.randn(1, len(tokenizer), generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[5]])
    free = PerceptionGrammar([depth_rule(depth, 2)])(ids, logits)
    forced = PerceptionGrammar([depth_rule(depth, 2)], require=["depth"], eos=[EOS, 3])(ids, logits)
    assert forced[0, [EOS, 3]].eq(float("-inf")).all()
    total = free[0, [EOS, 3, depth.begin[0]]].logsumexp(0)
    assert torch.isclose(forced[0, depth.begin[0]], total)
    others = torch.ones(len(tokenizer), dtype=torch.bool)
    others[[EOS, 3, depth.begin[0]]] = False
    assert torch.equal(forced[0, others], free[0, others])
    grammar = PerceptionGrammar([box_rule(tokenizer, FAMILIES[1])], require=["pixel"], eos=EOS)
    wants_end = torch.zeros(1, len(tokenizer)).index_fill(1, torch.tensor([EOS]), 30.0)
    assert grammar(ids, wants_end).argmax() == opener
    assert grammar(torch.tensor([[5, opener]]), wants_end).argmax() in attachment.maps["pixel"].codes


def test_a_required_span_of_many_first_ids_begins_where_the_end_is_the_likeliest(host):
    tokenizer, _, attachment = host
    loc = attachment.maps["loc"]
    logits = torch.zeros(1, len(tokenizer)).index_fill(1, torch.tensor([EOS]), 5.0)
    logits[0, 7], logits[0, loc.codes[3]] = 4.0, 0.5
    found = PerceptionGrammar([loc_rule(loc)], require=["loc"], eos=EOS)(torch.tensor([[5]]), logits)
    assert found[0].argmax() == loc.codes[3]
    torch.testing.assert_close(
        found[0].logsumexp(0), PerceptionGrammar([loc_rule(loc)])(torch.tensor([[5]]), logits)[0].logsumexp(0)
    )


def test_ids_in_a_buffer_that_is_written_over_are_read_anew(host):
    loc = host[2].maps["loc"]
    grammar = PerceptionGrammar([loc_rule(loc)])
    buffer = torch.tensor([[5, loc.codes[2], 0], [6, 7, 0]])
    grammar.states(buffer[:, :2])
    buffer[:, :2] = buffer[[1, 0], :2]
    buffer[:, 2] = torch.tensor([8, loc.codes[4]])
    assert [state.inside for state in grammar.states(buffer)] == [(), (loc.codes[2], loc.codes[4])]


@pytest.mark.parametrize("kind", ["byte_level", "sentence_piece"])
def test_punctuation_of_boxes_is_what_the_tokenizer_makes_of_it(kind):
    tokenizer = TOKENIZERS[kind]()
    family = token_families.pixel(8)
    codes = attach(tokenizer, llama(len(tokenizer)), [family]).maps["pixel"]
    grammar = PerceptionGrammar([box_rule(tokenizer, family)])
    for text in ("(<PIXEL_1>,<PIXEL_0>,<PIXEL_5>,<PIXEL_5>)", "a b (<PIXEL_1>,<PIXEL_0>,<PIXEL_5>,<PIXEL_5>), c"):
        ids = torch.tensor([tokenizer(text, add_special_tokens=False).input_ids])
        state = grammar.states(ids)[0]
        assert not state.dead and state.rule is None and state.counts == (1,)
    ids = torch.tensor([tokenizer("a", add_special_tokens=False).input_ids])
    scores = PerceptionGrammar([box_rule(tokenizer, family)])(ids, torch.zeros(1, len(tokenizer)))
    assert scores[0, list(codes.codes)].eq(float("-inf")).all(), "no bracket, no box"


def test_a_prompt_may_hold_other_spans_if_it_is_passed_over(host):
    tokenizer, _, attachment = host
    depth = attachment.maps["depth"]
    shot = torch.tensor([[5, depth.codes[0], depth.begin[0]]])
    with pytest.raises(ValueError, match="row 0 has id .* at place 1, between spans; pass prompt_length=3"):
        PerceptionGrammar([depth_rule(depth, 2)])(shot, torch.zeros(1, len(tokenizer)))
    scores = PerceptionGrammar([depth_rule(depth, 2)], prompt_length=3)(shot, torch.zeros(1, len(tokenizer)))
    assert scores[0, depth.begin[0]] == 0 and scores[0, 5] == 0


def test_mistakes_are_named(host):
    tokenizer, _, attachment = host
    depth, pixel = attachment.maps["depth"], token_families.pixel(12)
    rule = depth_rule(depth, 2)
    with pytest.raises(ValueError, match="expected rules with names and first ids of their own"):
        PerceptionGrammar([rule, rule])
    with pytest.raises(ValueError, match=r"require to name some of \['depth'\], and eos with it, got \['depth'\] and"):
        PerceptionGrammar([rule], require=["depth"])
    with pytest.raises(ValueError, match=r"require to name some of .*got \['boxes'\]"):
        PerceptionGrammar([rule], require=["boxes"], eos=2)
    with pytest.raises(ValueError, match=r"scores of more than \d+ ids, got 63; the model lacks"):
        PerceptionGrammar([rule])(torch.tensor([[5]]), torch.zeros(1, 63))
    with pytest.raises(ValueError, match="count >= 1 and a family with markers"):
        depth_rule(attachment.maps["pixel"])
    with pytest.raises(ValueError, match="template with four places"):
        box_rule(tokenizer, pixel, "({},{})")
    words = TOKENIZERS["words"]()
    attach(words, llama(len(words)), [pixel])
    with pytest.raises(ValueError, match=r"reads a part as unknown; attach a family with its punctuation, or use"):
        box_rule(words, pixel)
    assert len(box_rule(words, pixel, "{}{}{}{}").steps) == 4
    with pytest.raises(ValueError, match="expected max_spans >= 1 or None, got 0"):
        depth_rule(depth, max_spans=0)
    with pytest.raises(ValueError, match="the number of codes, got 16"):
        loc_rule(attachment.maps["loc"], gap=16)
    lacking = TokenFamily("boxes", tuple(f"<b{place}>" for place in range(3)))
    with pytest.raises(ValueError, match="all its strings, 3 of 3 are missing"):
        VocabMap.of(tokenizer, lacking)


def test_a_list_of_processors_takes_it_after_others(host):
    tokenizer, _, attachment = host
    chain = LogitsProcessorList([PerceptionGrammar([depth_rule(attachment.maps["depth"], 2)])])
    assert chain(torch.tensor([[5]]), torch.zeros(1, len(tokenizer))).shape == (1, len(tokenizer))
