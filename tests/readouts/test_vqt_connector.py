"""VQT's tokens as the images of a language model: as many for images of any size, and only the connector learns."""

from typing import Any

import torch
from torch import Tensor

from vistok.readouts.vqt import VQT

from ..lvlm.micro_fixtures import SETTINGS, tiny_micro
from .conftest import PATCH, randomize, timm_vit


def prompt(model: Any, processor: Any, visual: Tensor, text: str) -> tuple[Tensor, Tensor]:
    """Embeds of the text with `visual` [1, V, D] in front, and labels that ask for its last word."""
    ids = processor.tokenizer(text, return_tensors="pt").input_ids
    embeds = torch.cat([visual, model.get_input_embeddings()(ids)], 1)
    labels = torch.full(embeds.shape[:2], -100)
    labels[:, -1] = ids[:, -1]
    return embeds, labels


def test_tokens_go_through_the_projector_into_the_language_model_and_gradients_come_back() -> None:
    model, processor = tiny_micro()
    model.requires_grad_(False)
    projector = model.model.multi_modal_projector.requires_grad_(True)
    # Any size: the tower has no class token to place, and its positions are resampled.
    vit = randomize(timm_vit(embed_dim=SETTINGS.vision_width, dynamic_img_size=True))
    vqt = VQT(vit, 2)
    counts = set()
    for height, width in ((16, 16), (24, 16)):
        images = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height))
        tokens = vqt.tokens(images)
        assert tokens.embeds is not None
        counts.add(tokens.num_slots)
        assert (height // PATCH) * (width // PATCH) + 1 != tokens.num_slots
        embeds, labels = prompt(model, processor, projector(tokens.embeds), "what color is the star ? red")
        out = model(inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2], dtype=torch.int64), labels=labels)
        out.loss.backward()
    assert counts == {len(vit.blocks) * 2}
    assert vqt.queries.grad is not None and bool((vqt.queries.grad.abs().sum((1, 2)) > 0).all())
    assert all(value.grad is not None and bool(value.grad.any()) for value in projector.parameters())
    learned = {id(vqt.queries), *map(id, projector.parameters())}
    others = [value for part in (model, vit) for value in part.parameters() if id(value) not in learned]
    assert others and all(value.grad is None for value in others)


def test_the_answer_depends_on_what_the_queries_read() -> None:
    model, processor = tiny_micro()
    vqt = VQT(randomize(timm_vit(embed_dim=SETTINGS.vision_width)), 2).eval()
    logits = []
    for seed in range(2):
        images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            visual = model.model.multi_modal_projector(vqt.tokens(images).embeds)
            embeds, _ = prompt(model, processor, visual, "what color is the star ?")
            logits.append(model(inputs_embeds=embeds).logits[:, -1])
    assert not torch.allclose(*logits)
