"""Hooks between the layers of a Hugging Face decoder, through which tokens leave it on their way."""

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vistok.lvlm.call import Call, Stage
from vistok.lvlm.layer_attention import RowAttention
from vistok.protocols import Budget, LayerPruner, LayerView, Transition

PARTS = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")


class DecoderHooks:
    """`call` is the forward under way; `calls` are those whose caches are still alive."""

    def __init__(self, decoder: Any, pruners: Sequence[LayerPruner], budgets: Sequence[Budget | None]) -> None:
        self.decoder = decoder
        self.layers: list[nn.Module] = list(decoder.layers)
        self.plans = [pruner.plan.resolve(len(self.layers)) for pruner in pruners]
        self.pruners, self.budgets = list(pruners), list(budgets)
        self.call: Call | None = None
        self.calls: WeakKeyDictionary[Any, Call] = WeakKeyDictionary()
        self._running: int | None = None
        self._parts: dict[str, Tensor] = {}
        self._before: Tensor | None = None
        self._handles: list[RemovableHandle] = []

    def stages(self) -> list[Stage]:
        """Fresh stages for a new call."""
        return [
            Stage(pruner, budget, frozenset(map(int, plan.observe)), frozenset(map(int, plan.prune_after)), plan.needs)
            for pruner, budget, plan in zip(self.pruners, self.budgets, self.plans, strict=True)
        ]

    def attach(self) -> None:
        """Register the hooks."""
        observed = {layer for plan in self.plans for layer in plan.observe}
        for number, layer in enumerate(self.layers):
            self._handles.append(layer.register_forward_pre_hook(self._enter(number), with_kwargs=True))
            self._handles.append(layer.register_forward_hook(self._leave(number)))
            for part in PARTS if number in observed else ():
                self._handles.append(getattr(layer, part).register_forward_hook(self._record(number, part)))

    def remove(self) -> None:
        """Remove the hooks and forget every call."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.calls.clear()
        self.call = None

    def _enter(self, number: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            call = self.call
            if call is None:
                raise RuntimeError(
                    "prune: a decoder layer ran outside of a forward of the model that was given to `prune`; call that "
                    "model itself, and for gradient checkpointing use transformers >= 5.23"
                )
            hidden: Tensor = args[0] if args else kwargs.pop("hidden_states")
            if call.past:
                return (hidden, *args[1:]), kwargs | call.decode_arguments(number, hidden, kwargs)
            if number == 0:
                self._start(call, hidden, kwargs)
            hidden = self._cuts(call, number, hidden)
            call.of_layer.append(len(call.segments) - 1)
            self._running, self._before = number, hidden if number in self._looks_back(call) else None
            self._parts.clear()
            return (hidden, *args[1:]), kwargs | dict(call.segments[-1].arguments)

        return hook

    def _start(self, call: Call, hidden: Tensor, kwargs: dict[str, Any]) -> None:
        call.start(kwargs, hidden)
        cache = kwargs.get("past_key_values")
        if cache is not None:
            self.calls[cache] = call
        view = call.view(-1, len(self.layers), hidden)
        for stage in call.stages:
            with torch.no_grad():
                stage.run = stage.pruner.begin(view, stage.budget)

    @staticmethod
    def _looks_back(call: Call) -> set[int]:
        return {layer for stage in call.stages if "attention" in stage.needs for layer in stage.prune_after}

    def _cuts(self, call: Call, number: int, hidden: Tensor) -> Tensor:
        """Let every pruner that cuts in front of this layer do so, one after the other."""
        before, self._before = self._before, None
        rotation = call.segments[-1].arguments.get("position_embeddings", call.base["position_embeddings"])
        for stage in call.stages:
            if number - 1 not in stage.prune_after or not call.segments[-1].visual.any():
                continue
            begin = perf_counter()
            with torch.no_grad():
                view = call.view(number - 1, len(self.layers), hidden)
                attentions = {}
                if "attention" in stage.needs and before is not None:
                    attentions["attention"] = RowAttention(self.layers[number - 1], before, rotation, view.valid)
                if "next_attention" in stage.needs:
                    attentions["next_attention"] = RowAttention(self.layers[number], hidden, rotation, view.valid)
                assert stage.run is not None
                cut = stage.run.prune(replace(view, **attentions))  # type: ignore[arg-type]
            stage.flops += sum(attention.flops for attention in attentions.values())
            if cut is not None:
                hidden = call.cut(view, cut, hidden)
                rotation = call.segments[-1].arguments.get("position_embeddings", rotation)
            stage.seconds += perf_counter() - begin
        return hidden

    def _record(self, number: int, part: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            # Gradient checkpointing runs these modules again during the backward pass, when no call is under way.
            if self.call is not None and self._running == number and not self.call.past:
                self._parts[part] = (output[0] if isinstance(output, tuple) else output).detach()

        return hook

    def _leave(self, number: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            call = self.call
            if call is None or call.past:
                return
            self._running = None
            hidden: Tensor = output[0] if isinstance(output, tuple) else output
            watching = [stage for stage in call.stages if number in stage.observe]
            if watching:
                self._observe(call, watching, call.view(number, len(self.layers), hidden))
            self._parts.clear()
            if number == len(self.layers) - 1:
                call.finish()

        return hook

    def _observe(self, call: Call, watching: list[Stage], view: LayerView) -> None:
        view = replace(view, transition=Transition(*(self._parts[part] for part in PARTS)))
        for stage in watching:
            begin = perf_counter()
            with torch.no_grad():
                assert stage.run is not None
                stage.run.observe(view)
            # Two norms and one dot product of inputs and outputs of two modules.
            stage.flops += 12 * view.hidden.numel()
            stage.seconds += perf_counter() - begin
