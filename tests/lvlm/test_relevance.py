"""Relevance against the full matrix recursion on separate forwards, and first-layer attention against eager's map."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
)

from vistok.lvlm.relevance import first_layer_attention, relevance, relevance_row, visual_columns

IMAGE, PAD, END = 3, 0, 2


def llava(text: str = "llama") -> Any:
    sizes: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 40, "max_position_embeddings": 128, "pad_token_id": PAD,
    }  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=12, patch_size=4,
        projection_dim=16,
    )  # fmt: skip
    kind: Any = LlamaConfig(**sizes) if text == "llama" else Qwen3Config(**sizes, head_dim=8)
    config = LlavaConfig(vision_config=vision, text_config=kind, image_token_id=IMAGE, vision_feature_layer=-1)
    return sharpened(LlavaForConditionalGeneration, config)


def qwen() -> Any:
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 40, "max_position_embeddings": 128, "pad_token_id": PAD,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 4,
            "temporal_patch_size": 1, "window_size": 16, "fullatt_block_indexes": [0], "out_hidden_size": 32,
        },
        image_token_id=IMAGE, video_token_id=4, vision_start_token_id=5, vision_end_token_id=6,
    )  # fmt: skip
    return sharpened(Qwen2_5_VLForConditionalGeneration, config)


def sharpened(kind: Any, config: Any) -> Any:
    """A model with weights so large that attention is far from uniform."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = kind(config)
        for parameter in model.model.language_model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
    return model.eval()


def llava_inputs(rows: list[list[int]]) -> dict[str, Tensor]:
    """Rows of ids (0 = padding); every image is nine placeholders."""
    ids = torch.tensor(rows)
    images = int((ids == IMAGE).sum()) // 9
    pixels = torch.randn(images, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "pixel_values": pixels}


def qwen_inputs(rows: list[list[int]]) -> dict[str, Tensor]:
    """Every image is six placeholders: 4 x 6 patches, merged by two and two."""
    ids = torch.tensor(rows)
    images = int((ids == IMAGE).sum()) // 6
    pixels = torch.randn(images * 24, 48, generator=torch.Generator().manual_seed(1))
    return {
        "input_ids": ids, "attention_mask": (ids != PAD).long(), "pixel_values": pixels,
        "image_grid_thw": torch.tensor([[1, 4, 6]] * images), "mm_token_type_ids": (ids == IMAGE).int(),
    }  # fmt: skip


def labels_of(ids: Tensor, spans: list[tuple[int, int]]) -> Tensor:
    labels = torch.full_like(ids, -100)
    for row, (start, stop) in enumerate(spans):
        labels[row, start:stop] = ids[row, start:stop]
    return labels


NINE, SIX = [IMAGE] * 9, [IMAGE] * 6
# Prompt and answer, one item padded on the left and one on the right, with answers of two tokens and one.
LLAVA_ROWS = [[PAD, 1, *NINE, 11, 12, 13, 20, 21], [1, *NINE, 14, 15, 16, 17, 22, PAD]]
LLAVA_SPANS = [(14, 16), (14, 15)]
QWEN_ROWS = [[PAD, 1, 5, *SIX, 6, 11, 12, 20, 21], [1, 5, *SIX, 6, 13, 14, 15, 22, PAD]]
QWEN_SPANS = [(12, 14), (12, 13)]
CASES: dict[str, Any] = {
    "llava": (llava, llava_inputs, LLAVA_ROWS, LLAVA_SPANS),
    "llava_with_normed_queries": (lambda: llava("qwen3"), llava_inputs, LLAVA_ROWS, LLAVA_SPANS),
    "qwen2_5_vl": (qwen, qwen_inputs, QWEN_ROWS, QWEN_SPANS),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Any, Any, dict[str, Tensor], Tensor]:
    """Model, the function that makes inputs, inputs and labels."""
    build, make, rows, spans = CASES[request.param]
    inputs = make(rows)
    return build(), make, inputs, labels_of(inputs["input_ids"], spans)


def eager_maps(model: Any, inputs: dict[str, Tensor]) -> Any:
    model.set_attn_implementation("eager")
    output = model(**inputs, output_attentions=True, use_cache=False)
    model.set_attn_implementation("sdpa")
    return output


def full_recursion(model: Any, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    """The paper's R for every answer token of every item, by matrices, averaged over the tokens."""
    total = torch.zeros(labels.shape)
    for item, place in (labels != -100).nonzero().tolist():
        output = eager_maps(model, inputs)
        gradients = torch.autograd.grad(output.logits[item, place - 1, labels[item, place]], output.attentions)
        matrix = torch.eye(labels.shape[1], dtype=torch.float64)
        for attention, gradient in zip(output.attentions, gradients, strict=True):
            weighted = (attention[item].double() * gradient[item].double()).relu().mean(0)
            matrix = matrix + weighted @ matrix
        total[item] += matrix[place - 1].float() / int((labels[item] != -100).sum())
    return total


def test_relevance_is_the_row_of_the_full_recursion(case: Any) -> None:
    model, _, inputs, labels = case
    found = relevance(model, inputs, labels)
    expected = visual_columns(model, inputs, full_recursion(model, inputs, labels).detach())
    assert expected.values.max() > 1e-3
    torch.testing.assert_close(
        found.visual.values, expected.values, rtol=1e-4, atol=1e-6 * float(expected.values.max())
    )
    assert torch.equal(found.visual.lengths, expected.lengths)


def test_first_layer_attention_is_the_eager_map_of_layer_zero(case: Any) -> None:
    model, _, inputs, labels = case
    found = first_layer_attention(model, inputs, labels)
    ids = inputs["input_ids"]
    last_image = torch.tensor([max(i for i, t in enumerate(row) if t == IMAGE) for row in ids.tolist()])
    rows = (torch.arange(ids.shape[1]) > last_image[:, None]) & (ids != PAD) & (labels == -100)
    first = eager_maps(model, inputs).attentions[0].detach().mean(1)
    mean = torch.stack([item[chosen].mean(0) for item, chosen in zip(first, rows, strict=True)])
    expected = visual_columns(model, inputs, mean)
    assert expected.values.std() > 1e-2 * float(expected.values.mean())
    torch.testing.assert_close(found.values, expected.values, rtol=1e-5, atol=1e-7)


def test_no_layer_runs_for_first_layer_attention(case: Any) -> None:
    model, _, inputs, labels = case
    ran: list[str] = []
    for layer in model.model.language_model.layers:
        layer.mlp.register_forward_hook(lambda *_: ran.append("mlp"))
        layer.self_attn.register_forward_hook(lambda *_: ran.append("attention"))
    first_layer_attention(model, inputs, labels)
    assert not ran


def test_a_batch_gives_what_each_item_gives_alone(case: Any) -> None:
    model, make, inputs, labels = case
    together, looked = relevance(model, inputs, labels), first_layer_attention(model, inputs, labels)
    per_item = [int((row == IMAGE).sum()) for row in inputs["input_ids"]]
    for item in range(2):
        keep = inputs["attention_mask"][item] > 0
        alone = make([inputs["input_ids"][item][keep].tolist()])
        share = len(inputs["pixel_values"]) // 2
        alone["pixel_values"] = inputs["pixel_values"][item * share : (item + 1) * share]
        own = labels[item][keep][None]
        visual = relevance(model, alone, own).visual.values
        assert visual.shape == (1, per_item[item])
        torch.testing.assert_close(visual[0], together.visual.values[item], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(first_layer_attention(model, alone, own).values[0], looked.values[item])


def test_the_model_is_left_as_it_was(case: Any) -> None:
    model, _, inputs, labels = case
    with torch.no_grad():
        before = model(**inputs).logits
    relevance(model, inputs, labels)
    first_layer_attention(model, inputs, labels)
    assert model.model.language_model.config._attn_implementation == "sdpa"
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, before)


def test_frozen_weights_give_the_same_relevance() -> None:
    model, inputs = llava(), llava_inputs(LLAVA_ROWS)
    labels = labels_of(inputs["input_ids"], LLAVA_SPANS)
    before = relevance(model, inputs, labels).visual.values
    assert torch.equal(relevance(model.requires_grad_(False), inputs, labels).visual.values, before)


def test_an_answer_is_correct_if_greedy_decoding_gives_it() -> None:
    model, prompt = llava(), llava_inputs([[1, *NINE, 11, 12, 13]])
    said = model.generate(**prompt, max_new_tokens=3, do_sample=False, suppress_tokens=[IMAGE], eos_token_id=None)
    answer = said[0, -3:].tolist()
    other = [*answer[:2], 30 if answer[2] != 30 else 31]
    for tokens, expected in ((answer, True), (other, False)):
        inputs = llava_inputs([[1, *NINE, 11, 12, 13, *tokens]])
        found = relevance(model, inputs, labels_of(inputs["input_ids"], [(13, 16)]))
        assert found.correct.tolist() == [expected]


def test_skipped_tokens_are_answered_but_not_explained() -> None:
    model, inputs = llava(), llava_inputs([[1, *NINE, 11, 12, 13, 20, END]])
    both = labels_of(inputs["input_ids"], [(13, 15)])
    one = labels_of(inputs["input_ids"], [(13, 14)])
    skipped = relevance(model, inputs, both, skip={END})
    torch.testing.assert_close(skipped.visual.values, relevance(model, inputs, one).visual.values)
    assert not torch.allclose(skipped.visual.values, relevance(model, inputs, both).visual.values)


def test_items_may_differ_in_the_number_of_visual_tokens() -> None:
    model, inputs = llava(), llava_inputs([[1, *NINE, 7, *NINE, 11, 20], [PAD] * 10 + [1, *NINE, 11, 20]])
    found = relevance(model, inputs, labels_of(inputs["input_ids"], [(21, 22)] * 2)).visual
    assert found.lengths.tolist() == [18, 9] and found.values.shape == (2, 18)
    assert found.mask.sum(1).tolist() == [18, 9]
    assert (found.values[0] > 0).any() and not found.values[1, 9:].any()


def test_other_rows_can_be_named() -> None:
    model, inputs = llava(), llava_inputs([[11, 12, *NINE, 13, 14]])
    rows = torch.tensor([[False] * 11 + [False, True]])
    first = eager_maps(model, inputs).attentions[0].detach().mean(1)
    torch.testing.assert_close(first_layer_attention(model, inputs, rows=rows).values, first[:, 12, 2:11])


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 6), st.integers(0, 2**31))
def test_the_row_recursion_is_a_row_of_the_matrix_recursion(batch: int, size: int, depth: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    layers = [torch.rand(batch, size, size, generator=draw, dtype=torch.float64) for _ in range(depth)]
    place = int(torch.randint(size, (), generator=draw))
    matrix = torch.eye(size, dtype=torch.float64).expand(batch, size, size)
    for layer in layers:
        matrix = matrix + layer @ matrix
    row = torch.zeros(batch, size, dtype=torch.float64)
    row[:, place] = 1
    torch.testing.assert_close(relevance_row(row, layers), matrix[:, place])


def test_what_does_not_fit_is_named() -> None:
    model, inputs = llava(), llava_inputs([[1, *NINE, 11, 20]])
    labels = labels_of(inputs["input_ids"], [(11, 12)])
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        relevance(model.train(), inputs, labels)
    model.eval()
    with pytest.raises(ValueError, match=r"expected labels \[1, 12\], got \[1, 11\]"):
        relevance(model, inputs, labels[:, 1:])
    with pytest.raises(ValueError, match="the token of input_ids there"):
        relevance(model, inputs, labels.where(labels == -100, 21))
    with pytest.raises(ValueError, match="an answer token to explain in every item"):
        relevance(model, inputs, labels, skip={20})
    with pytest.raises(ValueError, match="name the rows of the instruction by rows="):
        first_layer_attention(model, inputs, rows=torch.zeros(1, 12, dtype=torch.bool))
    with pytest.raises(ValueError, match="text behind the last visual token"):
        first_layer_attention(model, llava_inputs([[1, 11, *NINE]]))
