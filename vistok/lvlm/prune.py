"""Pruning of visual tokens in a Hugging Face model, for as long as a `with` block lasts.

Input pruners cut the arguments of every prompt (`vistok.lvlm.inputs`), layer pruners cut between decoder layers
(`vistok.lvlm.decoder`). Both work by hooks on the model, which are gone after the block; state belongs to one prompt.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from time import perf_counter
from types import TracebackType
from typing import Any, Self
from weakref import WeakSet

import torch
from torch import Tensor, nn

from vistok.lvlm.call import Call
from vistok.lvlm.checks import check_call, check_continuation, check_decoder, check_model, check_prefill
from vistok.lvlm.context import Context, reads_tower
from vistok.lvlm.decoder import DecoderHooks
from vistok.lvlm.family import Family, call_arguments, decoder_of, family_of, visual_features
from vistok.lvlm.inputs import as_tokens, cut_inputs, reduced, with_features
from vistok.lvlm.masks import padding_mask
from vistok.lvlm.positions import check_policy, text_positions
from vistok.lvlm.prompt import Prompt, locate, prompt_of
from vistok.lvlm.report import PruneReport, report_of, vision_flops
from vistok.lvlm.tower_merging import TowerMerging
from vistok.protocols import Budget, LayerPruner, Pruner, TowerMerger
from vistok.registry import create

Named = str | Pruner | LayerPruner

_active: WeakSet[nn.Module] = WeakSet()


def prune(
    model: nn.Module,
    pruners: Named | Sequence[Named],
    *,
    budget: Budget | None | Sequence[Budget | None] = None,
    positions: str | None = None,
    visual: Tensor | None = None,
    generator: torch.Generator | None = None,
    **settings: Any,
) -> "Pruning":
    """`with prune(model, "transprune") as p: model.generate(**inputs)`; also for `model(**inputs)`, with labels too.

    pruners: a name of `vistok.list_pruners()`, an object, or several of them, in the order in which tokens meet them.
    budget: tokens to keep, as an int or a fraction: per image at the input, per layer on average between layers; one
    per pruner where there are several. positions: "keep" or "reindex"; None is what each method does. visual: [B, n]
    bool, where the visual tokens are, for models or prompts (`inputs_embeds`) that do not say so themselves.
    generator: for pruners that draw. settings: of the pruner, where it is one name.
    Raises: ValueError if model or settings cannot be pruned; KeyError for an unknown name.
    """
    model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    several = isinstance(pruners, list | tuple)
    named: list[Any] = list(pruners) if isinstance(pruners, list | tuple) else [pruners]
    if settings and not (len(named) == 1 and isinstance(named[0], str)):
        raise ValueError(f"prune: expected settings ({', '.join(settings)}) with one name; build the pruner with them")
    built: list[Any] = [create("pruner", pruner, **settings) if isinstance(pruner, str) else pruner for pruner in named]
    budgets: list[Any] = list(budget) if isinstance(budget, list | tuple) else [budget]
    if len(budgets) != len(built) and not (budget is None and several):
        raise ValueError(f"prune: expected one budget for each of {len(built)} pruners, got {budget!r}")
    return Pruning(model, built, budgets if budget is not None else [None] * len(built), positions, visual, generator)


class Pruning(AbstractContextManager["Pruning"]):
    """The handle that `prune` returns: `report()` speaks of the latest prompt, `remove()` ends it."""

    def __init__(
        self,
        model: nn.Module,
        pruners: Sequence[Any],
        budgets: Sequence[Budget | None],
        positions: str | None,
        visual: Tensor | None,
        generator: torch.Generator | None,
    ) -> None:
        self.model: Any = model
        check_model(model)
        self.family: Family | None = None if visual is not None else family_of(model)
        decoder = decoder_of(model)
        check_decoder(decoder)
        self._visual = visual
        self._at_input = [(p, b) for p, b in zip(pruners, budgets, strict=True) if isinstance(p, Pruner)]
        inside = [(p, None if isinstance(p, Pruner) else b) for p, b in zip(pruners, budgets, strict=True)]
        inside = [(p, b) for p, b in inside if isinstance(p, LayerPruner)]
        for pruner in pruners:
            if not isinstance(pruner, Pruner | LayerPruner):
                raise ValueError(f"prune: expected a name or a pruner, got {type(pruner).__name__}")
        if any(budget is None for _, budget in self._at_input):
            raise ValueError("prune: expected a budget for every pruner at the input, e.g. budget=0.25")
        if self._at_input and visual is not None:
            raise ValueError("prune: expected pruners between layers with `visual`; input pruners need the images")
        self._hooks = DecoderHooks(decoder, [p for p, _ in inside], [b for _, b in inside])
        self._check_layers()
        self._positions = self._policy(positions)
        self._merging = self._tower_merging()
        self._context = Context(model, self.family, [p for p, _ in self._at_input], generator)
        self._handles: list[Any] = []
        self._latest: Call | None = None

    def _check_layers(self) -> None:
        cuts = [layer for plan in self._hooks.plans for layer in plan.prune_after]
        if len(cuts) != len(set(cuts)):
            raise ValueError(f"prune: expected pruners that cut behind different layers, got {sorted(cuts)}")

    def _tower_merging(self) -> TowerMerging | None:
        """What merges inside the vision tower; the pruner is then none of the input's any more."""
        mergers = [p for p, _ in self._at_input if isinstance(p, TowerMerger) and p.merges_in_tower]
        self._proportional = any(getattr(pruner, "proportional", False) for pruner, _ in self._at_input)
        if not mergers:
            return None
        first, budget = self._at_input.pop(0)
        if mergers != [first] or budget is None or any(reads_tower(p) for p, _ in self._at_input):
            raise ValueError(
                "prune: expected the pruner that merges in the vision tower first, and none that looks into it"
            )
        merger = mergers[0]
        return TowerMerging(self.model, lambda tokens, blocks: merger.blocks(tokens, blocks, budget), merger.targets)

    def _policy(self, positions: str | None) -> str:
        mrope = self.family is not None and self.family.mrope
        if positions is not None:
            check_policy(positions, mrope)
            return positions
        wished = {plan.positions for plan in self._hooks.plans if plan.prune_after}
        return "reindex" if "reindex" in wished and not mrope else "keep"

    def __enter__(self) -> Self:
        if self.model in _active:
            raise ValueError("prune: this model is being pruned already; give several pruners to one `prune`")
        _active.add(self.model)
        self._handles = [
            self.model.register_forward_pre_hook(self._before, with_kwargs=True),
            self.model.register_forward_hook(self._after, always_call=True),
        ]
        self._hooks.attach()
        self._context.attach()
        if self._merging is not None:
            self._merging.attach()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Take every hook off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._hooks.remove()
        self._context.remove()
        if self._merging is not None:
            self._merging.remove()
        _active.discard(self.model)

    def report(self, inputs: Mapping[str, Any] | None = None) -> PruneReport:
        """Tokens, FLOPs and cache of the latest prompt.

        inputs: of that prompt, to count the vision tower's operations as well, which runs it once more.
        Raises: ValueError before there was a prompt.
        """
        if self._latest is None:
            raise ValueError("prune: expected a prompt to report on; call the model inside the `with` block first")
        vision = None
        if inputs is not None and self.family is not None:
            vision = vision_flops(self.model, self.family, inputs) / len(inputs["input_ids"])
        return report_of(self._latest, self._hooks.decoder, self.model, vision)

    @property
    def source(self) -> Tensor:
        """[B, n'] int64: places, in the latest prompt, of the tokens behind the last layer.

        Raises: ValueError before there was one.
        """
        if self._latest is None:
            raise ValueError("prune: expected a prompt first; call the model inside the `with` block")
        last = self._latest.segments[-1]
        source = self._latest.prompt.source
        return source if last.index is None else source.gather(1, last.index)

    @property
    def kept(self) -> Tensor:
        """[B, n] bool: visual tokens of the latest prompt, as it was given, that are there behind the last layer.

        Raises: ValueError before there was one.
        """
        source = self.source
        assert self._latest is not None
        alive = self._latest.segments[-1].visual
        places = torch.zeros(len(source), self._latest.total, dtype=torch.int8, device=source.device)
        # Padding has a source, too, which may be that of a token.
        return places.scatter_reduce(1, source, alive.to(torch.int8), "amax").bool()

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        self._hooks.call = None

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if module is not self.model:
            raise RuntimeError("prune: a copy of the model ran (DataParallel?); use DistributedDataParallel instead")
        arguments = call_arguments(self.model, args, kwargs)
        cache = arguments.get("past_key_values")
        check_call(arguments, cache)
        if cache is not None and cache.get_seq_length() > 0:
            arguments = self._continue(arguments, cache)
        else:
            check_prefill(arguments, cache)
            arguments = self._begin(arguments)
        return (), arguments

    def _begin(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Arguments of a prompt after the input stage; opens the call."""
        found = self._given_prompt(arguments) if self.family is None else None
        call: Call
        if found is not None:
            call = self._call(found, found.valid.shape[1])
        else:
            arguments, call = self._cut(arguments)
        if self._hooks.pruners and isinstance(arguments.get("labels"), Tensor):
            call.labels = arguments["labels"] = arguments["labels"].clone()
        self._hooks.call = self._latest = call
        return arguments

    def _given_prompt(self, arguments: dict[str, Any]) -> Prompt:
        assert self._visual is not None
        ids = arguments.get("input_ids")
        ids = arguments["inputs_embeds"] if ids is None else ids
        visual = self._visual.to(ids.device)
        if visual.dtype != torch.bool or visual.shape != ids.shape[:2]:
            raise ValueError(
                f"prune: expected `visual` bool {list(ids.shape[:2])} as the prompt, got {visual.dtype} "
                f"{list(visual.shape)}"
            )
        plain = prompt_of(ids, arguments.get("attention_mask"), {})
        before = torch.cat([visual.new_zeros(len(visual), 1), visual[:, :-1]], 1)
        images = (visual & ~before).cumsum(1) - 1
        return Prompt(plain.valid, torch.where(visual, images, -1), plain.source)

    def _cut(self, arguments: dict[str, Any]) -> tuple[dict[str, Any], Call]:
        assert self.family is not None
        ids = arguments.get("input_ids")
        if ids is None:
            raise ValueError("prune: expected input_ids; for inputs_embeds say where the visual tokens are: `visual=`")
        features = visual_features(self.model, self.family, arguments)
        merged = {} if self._merging is None else {name: self._merging.tokens(own) for name, own in features.items()}
        visuals = locate(self.model.config, self.family, ids, features)
        if not visuals or not (self._at_input or merged):
            call = self._call(prompt_of(ids, arguments.get("attention_mask"), visuals), ids.shape[1])
            return with_features(arguments, self.family, features), call
        begin = perf_counter()
        context = self._context.of_images(arguments, features, visuals)
        pruners = [pruner for pruner, _ in self._at_input]
        budgets = [budget for _, budget in self._at_input]
        tokens = {
            name: reduced(pruners, merged[name] if merged else as_tokens(values), budgets, context[name])
            for name, values in features.items()
        }
        cut = cut_inputs(self.model, self.family, arguments, visuals, tokens, self._positions)
        prompt = prompt_of(cut.arguments["input_ids"], cut.arguments["attention_mask"], cut.visuals, cut.index)
        call = self._call(prompt, ids.shape[1])
        call.index, call.dead, call.deltas, call.dropped = cut.index, cut.dead, cut.deltas, cut.dropped
        call.key_bias = cut.log_sizes() if self._proportional else None
        call.full_visual = sum(sum(visual.counts) for visual in visuals.values()) / len(ids)
        call.input_seconds = perf_counter() - begin
        return cut.arguments, call

    def _call(self, prompt: Prompt, total: int) -> Call:
        decoder = self._hooks.decoder
        stages = self._hooks.stages() if bool(prompt.visual.any()) else []
        return Call(prompt, stages, decoder.rotary_emb, decoder.config._attn_implementation, self._positions, total)

    def _continue(self, arguments: dict[str, Any], cache: Any) -> dict[str, Any]:
        """Arguments of tokens that follow a prompt in its cache."""
        call = self._hooks.calls.get(cache)
        if call is None:
            raise ValueError("prune: expected a cache that was filled inside this `with` block, got one from before")
        call.past, call.step = cache.get_seq_length(), {}
        arguments = _only_new(arguments, call)
        if call.stages or call.index is not None:
            check_continuation(arguments, self.family, behind_prompt=call.past == call.width)
        self._hooks.call = call
        return arguments if call.index is None else arguments | self._shortened(arguments, call)

    def _shortened(self, arguments: dict[str, Any], call: Call) -> dict[str, Any]:
        """Mask and positions of later tokens, where the input stage has cut the prompt."""
        assert call.index is not None and call.dead is not None and call.dropped is not None
        new: Tensor = arguments["input_ids"] if arguments.get("input_ids") is not None else arguments["inputs_embeds"]
        total = call.total + call.past - call.width + new.shape[1]
        mask = arguments.get("attention_mask")
        positions = arguments.get("position_ids")
        if positions is None:
            full = torch.ones(len(new), total, dtype=torch.int64, device=new.device) if mask is None else mask
            positions = text_positions(full, full)[:, -new.shape[1] :]
            if call.deltas is not None:
                positions = (positions + call.deltas).expand(3, -1, -1)
        if self._positions == "reindex":
            positions = positions - call.dropped
        return {
            "attention_mask": padding_mask(mask, call.index, call.dead, call.total, total),
            "position_ids": positions,
        }


def _only_new(arguments: dict[str, Any], call: Call) -> dict[str, Any]:
    """`generate` takes what is new to begin where the cache ends, which a cut at the input has made shorter."""
    mask, ids = arguments.get("attention_mask"), arguments.get("input_ids")
    surplus = call.total - call.width
    if not surplus or not isinstance(mask, Tensor) or not isinstance(ids, Tensor):
        return arguments
    if call.past + ids.shape[1] != mask.shape[1]:
        return arguments
    names = ("input_ids", "position_ids", "mm_token_type_ids", "token_type_ids")
    return arguments | {
        name: arguments[name][..., surplus:] for name in names if isinstance(arguments.get(name), Tensor)
    }
