"""The benchmark of pruning on a host of a few thousand parameters, with the real 576 visual and 64 text tokens."""

import logging
from functools import partial

import pytest
import torch

import vistok
from vistok.bench import prune as bench
from vistok.lvlm import prune
from vistok.lvlm.flops import DecoderShape, cache_bytes, exact_prefill
from vistok.protocols import LayerPruner, Pruner

LAYERS, WIDTH, HEADS = 3, 16, 2
SHAPE = DecoderShape(LAYERS, WIDTH, 44, HEADS, HEADS, WIDTH // HEADS, vocab=32064)


@pytest.fixture(scope="module")
def host():
    return bench.make_host(f"{LAYERS}x{WIDTH}x{HEADS}", torch.device("cpu"), torch.float32)


def compared(host, budget, *names, rounds=2):
    hosted = {name: partial(prune, host.model, vistok.pruner(name), budget=budget) for name in names}
    return {timing.name: timing for timing in bench.compare(host, hosted, rounds, "test")}


def test_the_prompt_has_576_visual_and_64_text_tokens_and_the_host_the_layers_that_were_asked_for(host):
    assert host.inputs["input_ids"].shape == (1, 640)
    assert int((host.inputs["input_ids"] == host.model.config.image_token_id).sum()) == 576
    text = host.model.config.text_config
    assert (text.num_hidden_layers, text.hidden_size, text.num_attention_heads) == (LAYERS, WIDTH, HEADS)


def test_the_full_host_has_about_half_a_billion_parameters():
    config = bench._config("full")
    with torch.device("meta"):
        model = bench.LlavaForConditionalGeneration(config)
    assert 0.45e9 < sum(parameter.numel() for parameter in model.parameters()) < 0.6e9


@pytest.mark.parametrize(("budget", "kept"), [(0.5, 288), (0.1, 58)])
def test_what_is_promised_is_the_exact_count_of_operations_with_and_without_the_dropped_tokens(host, budget, kept):
    timings = compared(host, budget, "uniform", "k_center")
    assert list(timings) == ["unpruned", "uniform", "k_center"]
    tokens = LAYERS * [64 + kept]
    expected = exact_prefill(LAYERS * [640], SHAPE) / exact_prefill(tokens, SHAPE)
    for name in ("uniform", "k_center"):
        timing = timings[name]
        assert timing.predicted == pytest.approx(expected) and timing.kept == pytest.approx(kept / 576)
        assert timing.kv_mib == cache_bytes(tokens, SHAPE, 4) / 2**20
        assert timing.reached == pytest.approx(timing.speedup / expected)
        assert timing.speedup == pytest.approx(1 / timing.ratio)
        assert timing.selection > 0 and timing.decode_ms > 0


def test_the_unpruned_model_is_the_base_and_promises_nothing(host):
    full = compared(host, 0.5, "uniform")["unpruned"]
    assert full.ratio == full.speedup == full.predicted == full.reached == full.kept == full.whole_speedup == 1.0
    assert full.selection == 0.0 and full.kv_mib == cache_bytes(LAYERS * [640], SHAPE, 4) / 2**20


def test_the_tower_is_a_part_of_the_whole_and_none_of_the_language_models_prefill(host):
    taken = bench.sample(host)
    assert 0 < taken.features < taken.whole and taken.language == taken.whole - taken.features
    again = bench.sample(host, lambda: prune(host.model, "uniform", budget=0.1))
    assert len(host.features) == 4, "tower and projector ran once each"
    assert 0 < again.features < again.whole


def test_a_pruner_that_cannot_reach_the_budget_is_left_out_with_its_own_words(host, caplog):
    settings = {"observe": [0], "prune_after": [1], "ratios": [0.5]}
    pruner = vistok.pruner("transprune", **settings)
    for budget, found in ((0.1, ["unpruned"]), (0.8, ["unpruned", "transprune"])):
        hosted = {"transprune": partial(prune, host.model, pruner, budget=budget)}
        with caplog.at_level(logging.WARNING, logger=bench.__name__):
            assert [timing.name for timing in bench.compare(host, hosted, 1, "test")] == found
    assert len(caplog.messages) == 1 and "transprune is left out" in caplog.text and "0.667" in caplog.text


def test_a_host_is_the_same_every_time_and_leaves_torchs_generator_alone(host):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again = bench.make_host(f"{LAYERS}x{WIDTH}x{HEADS}", torch.device("cpu"), torch.float32)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, again.inputs[name]) for name, value in host.inputs.items())
    pairs = zip(host.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert again.flops == host.flops > 0


def test_only_the_methods_that_are_named_are_timed():
    cases = dict(bench.run(1, methods=["uniform"], size="2x8x2"))
    assert [timing.name for timing in cases["25% kept"]] == ["unpruned", "uniform"]
    assert [timing.name for timing in cases["own schedule"]] == ["unpruned"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "huge"}, "size full, small or layers x width x heads"),
        ({"size": "2x0x2"}, "got '2x0x2'"),
        ({"size": "2x30x4"}, "multiple of twice the heads, got 30 and 4"),
        ({"dtype": "float16"}, "float32 or bfloat16, got 'float16'"),
        ({"size": "2x8x2", "rounds": 0}, "rounds >= 1, got 0"),
    ],
)
def test_settings_that_do_not_exist_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        next(bench.run(**options))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_pruner_is_timed_at_every_budget_and_between_layers_at_its_own_schedule(dtype, caplog):
    cases = {
        case: {timing.name: timing for timing in timings} for case, timings in bench.run(1, size="small", dtype=dtype)
    }
    assert list(cases) == ["50% kept", "25% kept", "10% kept", "own schedule"]
    pruners = {name: vistok.pruner(name) for name in vistok.list_pruners()}
    at_input = {name for name, pruner in pruners.items() if isinstance(pruner, Pruner)}
    between = {name for name, pruner in pruners.items() if isinstance(pruner, LayerPruner)} - at_input
    assert at_input and between and set(cases["own schedule"]) == {"unpruned", *between}
    for case, timings in cases.items():
        for name, timing in timings.items():
            shown = [form.format(timing) for form in bench.COLUMNS.values()]
            assert all(shown) and len(shown) == 10
            assert timing.seconds > 0 and timing.whole_ms > timing.seconds * 1e3 > 0
            assert name == "unpruned" or timing.predicted > 1
        left_out = {name for name in pruners if f"{name} is left out of {case!r}" in caplog.text}
        if case != "own schedule":
            assert at_input <= set(timings) and set(timings) | left_out == {"unpruned", *pruners}
    promised = [cases[case]["uniform"].predicted for case in list(cases)[:3]]
    assert promised == sorted(promised) and promised[0] > 2
