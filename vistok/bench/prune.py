"""Prefill with fewer visual tokens inside a LLaVA of random weights: what is saved against what the FLOPs promise.

One prompt of 576 visual and 64 text tokens, every pruner that `vistok.lvlm.prune` hosts, each at several budgets and,
between layers, at its own schedule; in turn with the unpruned model, in one process. All speeds are medians.
What counts as prefill: the vision tower and the projector run in full with pruning and without, so `seconds`, `ratio`,
`speedup`, `predicted` and `reached` are of the language model's prefill, which is the whole forward less tower and
projector: it includes the choosing of tokens, the cut, and the output head for the last row. `whole_*` are of
everything from pixels to logits. The choosing counts against the language model's prefill, the smaller of the two.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, DynamicCache, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import vistok
from vistok.bench.timing import Timing
from vistok.lvlm import Pruning, prune
from vistok.lvlm.family import family_of
from vistok.lvlm.report import PruneReport, vision_flops
from vistok.protocols import LayerPruner, Pruner

SIZES = {"full": "32x896x14", "small": "14x64x2"}
BUDGETS = (0.5, 0.25, 0.1)
TEXT_TOKENS = 64
_SIDE, _PATCH = 336, 14
_IMAGE_TOKEN, _TEXT_TOKEN, _WORDS = 32000, 1, 32064
_BEFORE_IMAGE = 16  # of the text tokens: a system prompt as short as LLaVA's is long beside its question
_DECODED = 4

# What a table shows of a `PruneTiming` beside its seconds and ratio.
COLUMNS = {
    "kept": "{0.kept:.1%}",
    "speed-up": "{0.speedup:.2f}",
    "by FLOPs": "{0.predicted:.2f}",
    "reached": "{0.reached:.1%}",
    "selection": "{0.selection:.2%}",
    "whole ms": "{0.whole_ms:.1f}",
    "whole speed-up": "{0.whole_speedup:.2f}",
    "whole reached": "{0.whole_reached:.1%}",
    "decode ms": "{0.decode_ms:.2f}",
    "KV MiB": "{0.kv_mib:.1f}",
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PruneTiming(Timing):
    """One pruner in one case; see the file about what is a prefill. seconds, ratio: the language model's prefill.

    kept: visual tokens per layer, of 1. speedup: unpruned seconds over these. predicted: exact FLOPs unpruned over
    pruned. reached: speedup / predicted. selection: share of the unpruned prefill that the choosing takes. whole_*:
    from pixels to logits. decode_ms: of one later token. kv_mib: cache behind the prefill.
    """

    kept: float
    speedup: float
    predicted: float
    reached: float
    selection: float
    whole_ms: float
    whole_speedup: float
    whole_reached: float
    decode_ms: float
    kv_mib: float


@dataclass(frozen=True)
class Sample:
    """One prompt and some decoding: seconds of the whole forward, of tower and projector in it, of a decoding step."""

    whole: float
    features: float
    decode: float
    kv_bytes: int
    report: PruneReport | None = None

    @property
    def language(self) -> float:
        """Seconds of the language model's prefill."""
        return self.whole - self.features


@dataclass(frozen=True)
class Host:
    """Model and prompt. features: seconds of tower and projector since it was cleared; flops: theirs."""

    model: Any
    inputs: dict[str, Tensor]
    now: Callable[[], float]
    features: list[float]
    flops: int


def run(
    rounds: int = 7,
    *,
    methods: Sequence[str] | None = None,
    budgets: Sequence[float] = BUDGETS,
    size: str = "full",
    dtype: str | None = None,
    device: str | None = None,
) -> Iterator[tuple[str, list[Timing]]]:
    """Yield every case with its timings, the unpruned model first; who cannot reach a budget is left out with a word.

    methods: names of pruners, all if not given. budgets: shares of the visual tokens to keep. size: full (about 0.5 B
    parameters), small, or layers x width x heads of the decoder, e.g. 24x1024x16. dtype: bfloat16 or float32, on a GPU
    the former if not given. device: a GPU where there is one, if not given.
    Raises: ValueError for a size or dtype that is none of these.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    host = make_host(size, place, _dtype(dtype or ("float32" if place.type == "cpu" else "bfloat16")))
    pruners = {name: _built(name, place) for name in methods or vistok.list_pruners()}
    opened = partial(prune, host.model, generator=torch.Generator().manual_seed(0))
    cases: list[tuple[str, float | None]] = [(f"{budget:.0%} kept", budget) for budget in budgets]
    for case, budget in [*cases, ("own schedule", None)]:
        hosted = {
            name: partial(opened, pruner, budget=budget)
            for name, pruner in pruners.items()
            if budget is not None or (isinstance(pruner, LayerPruner) and not isinstance(pruner, Pruner))
        }
        yield case, list(compare(host, hosted, rounds, case))


def compare(host: Host, hosted: Mapping[str, Callable[[], Pruning]], rounds: int, case: str) -> Iterator[PruneTiming]:
    """The unpruned model and every pruner, each once per round, after one prompt to warm up.

    Raises: ValueError without rounds.
    """
    if rounds < 1:
        raise ValueError(f"prune: expected rounds >= 1, got {rounds}")
    sample(host)
    hosted = {name: opened for name, opened in hosted.items() if _works(host, name, opened, case)}
    taken: dict[str, list[Sample]] = {name: [] for name in ("unpruned", *hosted)}
    for _ in range(rounds):
        taken["unpruned"].append(sample(host))
        for name, opened in hosted.items():
            taken[name].append(sample(host, opened))
    for name, samples in taken.items():
        yield _timing(name, samples, taken["unpruned"], host.flops)


def _works(host: Host, name: str, opened: Callable[[], Pruning], case: str) -> bool:
    try:
        sample(host, opened)
    except ValueError as error:
        _log.warning("%s is left out of %r: %s", name, case, error)
        return False
    return True


@torch.inference_mode()
def sample(host: Host, opened: Callable[[], Pruning] | None = None) -> Sample:
    """Run the prompt once and decode behind it."""
    if opened is None:
        return _timed(host)
    with opened() as pruning:
        taken = _timed(host)
        return Sample(taken.whole, taken.features, taken.decode, taken.kv_bytes, pruning.report())


def _timed(host: Host) -> Sample:
    host.features.clear()
    cache: Any = DynamicCache(config=host.model.config.get_text_config())
    began = host.now()
    host.model(**host.inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
    whole = host.now() - began
    features, size = sum(host.features), sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    return Sample(whole, features, median(_decode(host, cache)), size)


def _decode(host: Host, cache: Any) -> Iterator[float]:
    mask, word = host.inputs["attention_mask"], host.inputs["input_ids"].new_full((1, 1), _TEXT_TOKEN)
    for _ in range(_DECODED):
        mask = torch.cat([mask, mask[:, -1:]], 1)
        began = host.now()
        host.model(input_ids=word, attention_mask=mask, past_key_values=cache, use_cache=True)
        yield host.now() - began


def _timing(name: str, samples: list[Sample], unpruned: list[Sample], vision: int) -> PruneTiming:
    pairs = list(zip(samples, unpruned, strict=True))
    ratio = median(mine.language / full.language for mine, full in pairs)
    whole_ratio = median(mine.whole / full.whole for mine, full in pairs)
    report = samples[0].report
    before, after = (report.full_flops["exact"], report.flops["exact"]) if report else (1.0, 1.0)
    beside = vision if report else 0
    return PruneTiming(
        name,
        median(mine.language for mine in samples),
        ratio,
        kept=report.kept if report else 1.0,
        speedup=1 / ratio,
        predicted=before / after,
        reached=after / before / ratio,
        selection=median(_selection(mine) / full.language for mine, full in pairs),
        whole_ms=1e3 * median(mine.whole for mine in samples),
        whole_speedup=1 / whole_ratio,
        whole_reached=(after + beside) / (before + beside) / whole_ratio,
        decode_ms=1e3 * median(mine.decode for mine in samples),
        kv_mib=samples[0].kv_bytes / 2**20,
    )


def _selection(mine: Sample) -> float:
    return mine.report.selection_seconds if mine.report else 0.0


def make_host(size: str, device: torch.device, dtype: torch.dtype) -> Host:
    """A LLaVA of random weights, its tower half as deep as its decoder and as wide, and one prompt, both seeded.

    Raises: ValueError for a size that is neither named nor layers x width x heads.
    """
    config = _config(size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = LlavaForConditionalGeneration(config)
    model.to(device, dtype).eval()
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(2, _IMAGE_TOKEN, (1, TEXT_TOKENS), generator=generator)
    image = torch.full((1, (_SIDE // _PATCH) ** 2), _IMAGE_TOKEN)
    ids = torch.cat([text[:, :_BEFORE_IMAGE], image, text[:, _BEFORE_IMAGE:]], 1).to(device)
    pixels = torch.randn(1, 3, _SIDE, _SIDE, generator=generator).to(device, dtype)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    flops, features = vision_flops(model, family_of(model), inputs), list[float]()
    now = partial(_now, device)
    for part in (model.model.vision_tower, model.model.multi_modal_projector):
        part.register_forward_pre_hook(lambda module, args: features.append(-now()))
        part.register_forward_hook(lambda module, args, output: features.append(now()))
    return Host(model, inputs, now, features, flops)


def _config(size: str) -> LlavaConfig:
    parts = SIZES.get(size, size).split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(
            f"prune: expected size {', '.join(SIZES)} or layers x width x heads (24x1024x16), got {size!r}"
        )
    layers, width, heads = map(int, parts)
    if width % (2 * heads):
        raise ValueError(f"prune: expected a width that is a multiple of twice the heads, got {width} and {heads}")
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=max(2, layers // 2),
        num_attention_heads=heads,
        image_size=_SIDE,
        patch_size=_PATCH,
        projection_dim=width,
    )
    text = LlamaConfig(
        vocab_size=_WORDS,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
    )
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=_IMAGE_TOKEN)


def _dtype(name: str) -> torch.dtype:
    if name not in ("float32", "bfloat16"):
        raise ValueError(f"prune: expected dtype float32 or bfloat16, got {name!r}")
    found: torch.dtype = getattr(torch, name)
    return found


def _built(name: str, device: torch.device) -> Any:
    pruner = vistok.pruner(name)
    return pruner.to(device).eval() if isinstance(pruner, nn.Module) else pruner


def _now(device: torch.device) -> float:
    """Seconds, once what was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
