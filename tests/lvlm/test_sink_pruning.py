"""What pruners leave of the sinks, and answers with and without them, on models and pruners whose choice is known."""

from typing import Any

import pytest
import torch

import vistok.pruning.random  # noqa: F401
from vistok.lvlm.prompting import batches
from vistok.lvlm.prune import prune
from vistok.lvlm.scene_questions import scene_picture, scene_questions
from vistok.lvlm.sink_pruning import ALL, NO_RANDOM, NO_SINKS, RANDOM_ONLY, SINKS_ONLY, ByMask, KeptSinks, sink_report
from vistok.lvlm.sinks import token_states
from vistok.tokens import TokenSpec, TokenTensor

from .micro_fixtures import tiny_micro

READ = scene_picture(64)


@pytest.fixture(scope="module")
def host() -> tuple[Any, Any]:
    return tiny_micro()


def test_a_mask_keeps_what_it_says_and_never_nothing() -> None:
    tokens = TokenTensor(TokenSpec("features", 1), embeds=torch.arange(8.0).reshape(2, 4, 1))
    keep = torch.tensor([[False, True, False, True], [False] * 4])
    left = tokens.select(ByMask().select(tokens, 1.0, keep=keep))
    assert left.embeds is not None
    assert [row[:count].flatten().tolist() for row, count in zip(left.embeds, left.valid_lengths, strict=True)] == [
        [1, 3],
        [4],
    ]


def test_kept_says_which_visual_tokens_of_the_prompt_are_left(host: tuple[Any, Any]) -> None:
    model, processor = host
    each = next(iter(batches(model, processor, scene_questions("test", 3), READ, batch=3)))
    visual = each.inputs["input_ids"] == processor.image_token_id
    for pruner, budget in (("uniform", 9), ("fastv", 0.5)):
        with prune(model, pruner, budget=budget) as handle, torch.no_grad():
            model(**each.inputs, use_cache=True)
            assert handle.kept.shape == visual.shape and not bool((handle.kept & ~visual).any())
            assert handle.kept.sum(1).tolist() == [handle.report().visual[-1]] * 3
            # The longest prompt has no padding, whose source says nothing.
            item = int(each.inputs["attention_mask"].sum(1).argmax())
            source = handle.source[item]
            assert source[visual[item][source]].tolist() == handle.kept[item].nonzero()[:, 0].tolist()


def test_a_report_counts_the_sinks_that_each_pruner_leaves(host: tuple[Any, Any]) -> None:
    model, processor = host
    asked = scene_questions("test", 6)
    found = sink_report(model, processor, asked, READ, pruners=["uniform"], budget=0.5, factor=1.5, batch=3)
    sinks, states = [], []
    for each in batches(model, processor, asked, READ, batch=3):
        own = token_states(model, each.inputs)
        states.append(own)
        sinks.append(own.sinks(1.5)[:, own.visual].unflatten(1, (len(each.numbers), 36)))
    everywhere = torch.cat(sinks, 1)
    assert found.share == pytest.approx(float(everywhere.any(0).float().mean())) and 0 < found.share < 1
    assert found.by_layer == pytest.approx(everywhere.float().mean((1, 2)).tolist())
    kept = torch.zeros(36, dtype=torch.bool)
    each = next(iter(batches(model, processor, asked, READ, batch=3)))
    with prune(model, "uniform", budget=0.5) as handle, torch.no_grad():
        model(**each.inputs, use_cache=True)
        kept = handle.kept[each.inputs["input_ids"] == processor.image_token_id].unflatten(0, (3, 36))[0]
    of_sinks = everywhere.any(0)
    uniform = found.pruners["uniform"]
    assert uniform.kept == pytest.approx(0.5)
    assert uniform.kept_sinks == pytest.approx(float((of_sinks & kept).sum() / of_sinks.sum()))
    assert uniform.kept_sinks is not None
    assert uniform.lift == pytest.approx(uniform.kept_sinks / 0.5) and KeptSinks(0.0, 0.0).lift is None
    assert list(found.answers) == [ALL, NO_SINKS, NO_RANDOM, SINKS_ONLY, RANDOM_ONLY]
    assert found.massive == 0 and found.shown is None and found.questions == 6


def test_without_sinks_all_settings_but_the_empty_ones_answer_alike(host: tuple[Any, Any]) -> None:
    model, processor = host
    found = sink_report(
        model,
        processor,
        scene_questions("test", 4),
        READ,
        pruners=["uniform"],
        factor=1e9,
        batch=2,
        shown=lambda picture: torch.arange(36) < 9,
    )
    assert found.share == found.attention == 0 and found.shown == pytest.approx(0.25) and found.sinks_shown is None
    assert found.answers[ALL] == found.answers[NO_SINKS] == found.answers[NO_RANDOM]
    none = found.pruners["uniform"]
    assert none.kept == pytest.approx(0.25) and none.kept_sinks is None and none.lift is None


def test_no_questions_are_refused(host: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match="at least one question"):
        sink_report(*host, [], READ)
