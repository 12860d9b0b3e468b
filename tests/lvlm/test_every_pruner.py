"""What every pruner promises inside a model, over all of `vistok.list_pruners()`: a new method needs no edit here.

Each is built with its preset's `tiny` settings and prunes two tiny models, one with one axis of positions and one with
mRoPE. A pruner at the input gets half of the tokens to keep. What the host cannot supply to a pruner, it says itself,
and the test is skipped with that sentence.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import vistok
import vistok.lvlm
from vistok.protocols import LayerPruner, Pruner


def pruners_of_hosts() -> list[str]:
    """Names of what `vistok.lvlm.prune` takes."""
    found = []
    for name in vistok.list_pruners():
        built: Any = vistok.pruner(name, **vistok.info("pruner", name).tiny)
        if isinstance(built, Pruner | LayerPruner):
            found.append(name)
    return found


@pytest.fixture(params=["llava", "qwen"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(str(request.param))


@pytest.fixture(params=pruners_of_hosts())
def pruner(request: pytest.FixtureRequest) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)  # nets of trained methods keep the weights that they start with
        return vistok.pruner(str(request.param), **vistok.info("pruner", str(request.param)).tiny)


class Memory:
    """Takes down what a pruner does during one prompt, and has it do the same again in the next one.

    A longer prompt is another question, to which many methods would choose other tokens.
    """

    def __init__(self, pruner: Any) -> None:
        self.again = False
        self._made: list[Any] = []
        self._next = 0
        # The host asks for the one or the other, and a `reduce` may call its own `select`.
        name = "reduce" if hasattr(pruner, "reduce") else "select"
        if hasattr(pruner, name):
            setattr(pruner, name, self._kept(pruner, name))
        if hasattr(pruner, "begin"):
            pruner.begin = self._run(pruner.begin)

    def repeat(self) -> None:
        """From now on, and from the first choice."""
        self.again, self._next = True, 0

    def _kept(self, owner: Any, name: str) -> Any:
        choose = getattr(owner, name)

        def made(*args: Any, **kwargs: Any) -> Any:
            if not self.again:
                self._made.append(choose(*args, **kwargs))
            self._next += 1
            return self._made[self._next - 1]

        return made

    def _run(self, begin: Any) -> Any:
        def begun(*args: Any, **kwargs: Any) -> Any:
            run = begin(*args, **kwargs)
            return SimpleNamespace(observe=run.observe, prune=self._kept(run, "prune"))

        return begun


class Pruned:
    """A model under a pruner; every prompt begins with the generator in the same state."""

    def __init__(self, model: Any, handle: Any, generator: torch.Generator) -> None:
        self._model, self._handle, self._generator = model, handle, generator

    def generate(self, inputs: dict[str, Tensor], greedy: dict[str, Any]) -> Any:
        self._generator.manual_seed(3)
        return self._model.generate(**inputs, **greedy, output_logits=True, return_dict_in_generate=True)

    def logits(self, inputs: dict[str, Tensor]) -> Tensor:
        """[B, n', vocabulary], without a cache."""
        self._generator.manual_seed(3)
        found: Tensor = self._model(**inputs, use_cache=False).logits
        return found

    def report(self) -> Any:
        return self._handle.report()


@contextmanager
def pruning(model: Any, pruner: Any) -> Iterator[Pruned]:
    """Skips the test if the host cannot supply what the pruner needs."""
    budget = 0.5 if isinstance(pruner, Pruner) else None
    generator = torch.Generator()
    try:
        handle = vistok.lvlm.prune(model, pruner, budget=budget, generator=generator)
    except ValueError as error:
        if "pruner" not in str(error) or "needs" not in str(error):
            raise
        pytest.skip(f"the host cannot supply it: {error}")
    with handle:
        yield Pruned(model, handle, generator)


def longer(inputs: dict[str, Tensor], words: Tensor) -> dict[str, Tensor]:
    """The prompt with words [B, t] behind it."""
    grown = inputs | {"input_ids": torch.cat([inputs["input_ids"], words], 1)}
    for name, fill in (("attention_mask", 1), ("mm_token_type_ids", 0)):
        if name in inputs:
            grown[name] = torch.cat([inputs[name], torch.full_like(words, fill)], 1)
    return grown


def item(inputs: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """One item of two with as many images each, without its padding."""
    keep = inputs["attention_mask"][row].bool()
    text = ("input_ids", "attention_mask", "mm_token_type_ids")
    return {name: value[row : row + 1, keep] if name in text else value.chunk(2)[row] for name, value in inputs.items()}


def test_there_are_pruners_at_the_input_and_between_layers() -> None:
    assert {"uniform", "transprune", "todre"} <= set(pruners_of_hosts())


@torch.no_grad()
def test_generation_from_the_cache_equals_recomputation_without(model: Any, pruner: Any, greedy: Any) -> None:
    inputs, memory = model.inputs(texts=(4, 9), images=2), Memory(pruner)
    with pruning(model.model, pruner) as pruned:
        cached = pruned.generate(inputs, greedy)
        words = cached.sequences[:, inputs["input_ids"].shape[1] :]
        for step, logits in enumerate(cached.logits):
            if step:  # the same prompt has to lead to the same choice by itself
                memory.repeat()
            again = pruned.logits(longer(inputs, words[:, :step]))[:, -1]
            torch.testing.assert_close(again, logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_an_item_of_a_padded_batch_gets_the_words_that_it_gets_alone(model: Any, pruner: Any, greedy: Any) -> None:
    if "generator" in getattr(pruner, "needs", frozenset()):
        pytest.skip("it draws, and the items of a batch share one generator")
    inputs = model.inputs(texts=(4, 9), images=2)
    with pruning(model.model, pruner) as pruned:
        together = pruned.generate(inputs, greedy)
        for row in range(2):
            alone = pruned.generate(item(inputs, row), greedy)
            for own, both in zip(alone.logits, together.logits, strict=True):
                torch.testing.assert_close(own[0], both[row], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_report_counts_what_the_cache_holds_and_what_was_dropped(model: Any, pruner: Any, greedy: Any) -> None:
    inputs = model.inputs(texts=(4, 9))
    with pruning(model.model, pruner) as pruned:
        cache = pruned.generate(inputs, greedy).past_key_values
        report = pruned.report()
    later = greedy["max_new_tokens"] - 1
    assert [cache.get_seq_length(layer) - later for layer in range(len(report.tokens))] == list(report.tokens)
    assert report.full_visual == 16 and report.full_tokens == inputs["input_ids"].shape[1]
    assert list(report.visual) == sorted(report.visual, reverse=True)
    # The longer prompt is not padded: text and its own visual tokens are all there is.
    text = report.full_tokens - 16
    assert all(text <= tokens <= text + 16 for tokens in report.tokens)
    assert report.mean_visual < 16


@pytest.mark.parametrize("budget", [0.4, 9])
@torch.no_grad()
def test_a_budget_inside_the_decoder_is_met_or_refused(model: Any, pruner: Any, budget: float) -> None:
    if isinstance(pruner, Pruner) or not isinstance(pruner, LayerPruner):
        pytest.skip("its budget belongs to the decoder's input")
    inputs = model.inputs(texts=(4, 9))
    with vistok.lvlm.prune(model.model, pruner, budget=budget) as handle:
        try:
            model.model(**inputs)
        except ValueError as error:
            assert "budget" in str(error)
            pytest.skip(f"it cannot reach it: {error}")
    wanted = budget if budget > 1 else budget * 16
    # Each layer's tokens are a whole number.
    assert abs(handle.report().mean_visual - wanted) <= 1
