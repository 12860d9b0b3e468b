"""Tiny random models of every class that can be pruned: hidden 64, 4 layers, 4 heads, 2 KV heads; prompts for them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    SiglipVisionConfig,
)

from vistok.protocols import LayerCut, LayerPlan, LayerView

IMAGE, VIDEO, VISION_START, VISION_END, PAD = 90, 91, 92, 93, 0
SUPPRESSED = [IMAGE, VIDEO, VISION_START, VISION_END]
DECODER = {
    "vocab_size": 99,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
PINPOINTS = [[16, 32], [32, 16], [32, 32]]
CLASSES = ("llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl")


class Tiny(NamedTuple):
    """A model and what makes prompts for it, with images and with a video."""

    name: str
    model: Any
    inputs: Callable[..., dict[str, Tensor]]
    video: Callable[..., dict[str, Tensor]]


def clip() -> CLIPVisionConfig:
    return CLIPVisionConfig(**TOWER, image_size=16, patch_size=4, projection_dim=32)


def siglip() -> SiglipVisionConfig:
    return SiglipVisionConfig(**TOWER, image_size=16, patch_size=4, vision_use_head=False)


def llava_config() -> LlavaConfig:
    return LlavaConfig(
        vision_config=clip(), text_config=LlamaConfig(**DECODER), image_token_id=IMAGE, image_seq_length=16
    )


def llava_next_config() -> LlavaNextConfig:
    return LlavaNextConfig(
        vision_config=clip(),
        text_config=LlamaConfig(**DECODER),
        image_token_id=IMAGE,
        image_grid_pinpoints=PINPOINTS,
    )


def llava_onevision_config() -> LlavaOnevisionConfig:
    return LlavaOnevisionConfig(
        vision_config=siglip(),
        text_config=Qwen2Config(**DECODER),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_grid_pinpoints=PINPOINTS,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )


MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
QWEN = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}


def qwen2_vl_config() -> Qwen2VLConfig:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
    return Qwen2VLConfig(text_config=DECODER | {"rope_parameters": MROPE}, vision_config=vision, **QWEN)


def qwen2_5_vl_config() -> Qwen2_5_VLConfig:
    vision = {
        **{"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 4},
        **{"out_hidden_size": 64, "window_size": 16, "fullatt_block_indexes": [1]},
    }
    return Qwen2_5_VLConfig(text_config=DECODER | {"rope_parameters": MROPE}, vision_config=vision, **QWEN)


MODELS: dict[str, tuple[Any, Callable[[], Any]]] = {
    "llava": (LlavaForConditionalGeneration, llava_config),
    "llava_next": (LlavaNextForConditionalGeneration, llava_next_config),
    "llava_onevision": (LlavaOnevisionForConditionalGeneration, llava_onevision_config),
    "qwen2_vl": (Qwen2VLForConditionalGeneration, qwen2_vl_config),
    "qwen2_5_vl": (Qwen2_5_VLForConditionalGeneration, qwen2_5_vl_config),
}


def words(count: int, draw: torch.Generator) -> list[int]:
    return torch.randint(3, 89, (count,), generator=draw).tolist()


def padded(rows: list[list[int]], side: str) -> dict[str, Tensor]:
    """input_ids, attention_mask and mm_token_type_ids of prompts of different lengths."""
    longest = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        padding = [PAD] * (longest - len(row))
        ids.append(padding + row if side == "left" else row + padding)
        mask.append([0] * len(padding) + [1] * len(row) if side == "left" else [1] * len(row) + [0] * len(padding))
    tokens = torch.tensor(ids)
    kinds = (tokens == IMAGE).long() + 2 * (tokens == VIDEO).long()
    return {"input_ids": tokens, "attention_mask": torch.tensor(mask), "mm_token_type_ids": kinds}


def image_inputs(name: str, model: Any, images: int, seed: int) -> tuple[dict[str, Tensor], list[int]]:
    """Pixels of some images, as the model's processor would give them, and the number of tokens of each."""
    draw = torch.Generator().manual_seed(seed)
    if name.startswith("qwen"):
        grid = torch.tensor([[1, 8, 8]] * images)
        pixels = torch.randn(64 * images, 3 * 2 * 4 * 4, generator=draw)
        return {"pixel_values": pixels, "image_grid_thw": grid}, [16] * images
    if name == "llava":
        return {"pixel_values": torch.randn(images, 3, 16, 16, generator=draw)}, [16] * images
    sizes = torch.tensor([[24, 28]] * images)
    given = {"pixel_values": torch.randn(images, 5, 3, 16, 16, generator=draw), "image_sizes": sizes}
    if images > 1 and name == "llava_onevision":
        given["batch_num_images"] = torch.ones(images, dtype=torch.int64)
    with torch.no_grad():
        features = model.model.get_image_features(**given, return_dict=True).pooler_output
    return given, [len(feature) for feature in features]


def make_inputs(
    name: str, model: Any, *, texts: tuple[int, ...] = (5,), images: int = 1, side: str = "left", seed: int = 0
) -> dict[str, Tensor]:
    """One prompt per entry of `texts` (its words behind the images), each with so many images."""
    draw = torch.Generator().manual_seed(seed + 100)
    given, counts = image_inputs(name, model, images * len(texts), seed)
    rows, number = [], 0
    for text in texts:
        row = [1, *words(3, draw)]
        for _ in range(images):
            row += [VISION_START, *[IMAGE] * counts[number], VISION_END]
            number += 1
        rows.append(row + words(text, draw))
    tokens = padded(rows, side)
    if not name.startswith("qwen"):
        del tokens["mm_token_type_ids"]
    return tokens | given


def video_inputs(name: str, model: Any, *, texts: tuple[int, ...] = (5,), seed: int = 0) -> dict[str, Tensor]:
    """One prompt per entry of `texts`, each with one video."""
    draw = torch.Generator().manual_seed(seed + 200)
    given: dict[str, Tensor]
    if name.startswith("qwen"):
        grid = torch.tensor([[2, 8, 4]] * len(texts))
        pixels = torch.randn(64 * len(texts), 3 * 2 * 4 * 4, generator=draw)
        given, count = {"pixel_values_videos": pixels, "video_grid_thw": grid}, 16
    else:
        given, count = {"pixel_values_videos": torch.randn(len(texts), 3, 3, 16, 16, generator=draw)}, 3 * 4 + 1
    rows = []
    for text in texts:
        before = [VISION_START, *[VIDEO] * (count // 2), *[VIDEO] * (count - count // 2), VISION_END]
        rows.append([1, *words(2, draw), *before, *words(text, draw)])
    tokens = padded(rows, "left")
    if not name.startswith("qwen"):
        del tokens["mm_token_type_ids"]
    return tokens | given


def build(name: str, attention: str = "sdpa") -> Any:
    kind, config = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(7)
        settings = config()
        settings._attn_implementation = attention
        model = kind(settings).eval()
        for parameter in model.parameters():
            # The initial weights are so small that attention is flat and every token alike.
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.5 / parameter.shape[-1] ** 0.5 * 2)
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None
    return model


def tiny_of(name: str, attention: str = "sdpa") -> Tiny:
    model = build(name, attention)
    return Tiny(
        name,
        model,
        lambda **options: make_inputs(name, model, **options),
        lambda **options: video_inputs(name, model, **options),
    )


ATTENTIONS = [f"{name}-sdpa" for name in CLASSES]
# What differs in eager attention is the form of the mask, which is the same in all classes.
ATTENTIONS += [pytest.param(f"{name}-eager", marks=pytest.mark.slow if name != "llava" else ()) for name in CLASSES]


@pytest.fixture(scope="session", params=ATTENTIONS)
def tiny(request: pytest.FixtureRequest) -> Tiny:
    """A model of each class, once with each attention; tests leave it as they found it."""
    return tiny_of(*str(request.param).split("-"))


@pytest.fixture(scope="session", params=CLASSES)
def each_class(request: pytest.FixtureRequest) -> Tiny:
    return tiny_of(str(request.param))


@pytest.fixture(scope="session")
def llava() -> Tiny:
    return tiny_of("llava")


@pytest.fixture(scope="session")
def qwen() -> Tiny:
    return tiny_of("qwen2_5_vl")


class Stepwise:
    """A layer pruner that keeps the same tokens whatever they hold: by layer, a function from V to kept places."""

    cannot: frozenset[str] = frozenset()

    def __init__(self, cuts: dict[int, Callable[[int], list[int]]], positions: str = "keep") -> None:
        self.cuts = cuts
        self.plan = LayerPlan(prune_after=tuple(cuts), positions=positions)  # type: ignore[arg-type]

    def begin(self, view: LayerView, budget: Any = None) -> "Stepwise":
        return self

    def observe(self, view: LayerView) -> None:
        raise AssertionError("its plan observes nothing")

    def prune(self, view: LayerView) -> LayerCut:
        rows = [self.cuts[view.layer](count) for count in view.counts.tolist()]
        longest = max(map(len, rows))
        index = torch.tensor([row + [0] * (longest - len(row)) for row in rows], dtype=torch.int64)
        return LayerCut(index.reshape(len(rows), longest), torch.tensor([len(row) for row in rows]))


@pytest.fixture(scope="session")
def stepwise() -> Callable[..., Stepwise]:
    """Half behind layer 0, half of these behind layer 1, nothing behind layer 2; or cuts of one's own."""
    cuts = {0: lambda n: list(range(0, n, 2)), 1: lambda n: list(range(n // 2, n)), 2: lambda n: []}
    return lambda own=None, **options: Stepwise(own or cuts, **options)


@pytest.fixture(scope="session")
def greedy() -> dict[str, Any]:
    """Settings of `generate`: greedy, and no placeholder among the words."""
    return {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": SUPPRESSED}
