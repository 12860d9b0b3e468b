"""The authors' names: a model under them loads into ours and says the same."""

import pytest
import torch
from torch import Tensor

from vistok.readouts._official_keys import is_official
from vistok.readouts.vqt import VQT
from vistok.readouts.vqt_classifier import VQTClassifier
from vistok.weights import load_tensors

from .conftest import randomize, timm_vit

OUTSIDE = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings",
    "norm": "encoder.encoder_norm",
}
INSIDE = {
    "norm1": "attention_norm",
    "norm2": "ffn_norm",
    "attn.proj": "attn.out",
    "mlp.fc1": "ffn.fc1",
    "mlp.fc2": "ffn.fc2",
}


def theirs(model: VQTClassifier) -> dict[str, Tensor]:
    """A model's tensors as the authors name and cut them."""
    found = {f"head.last_layer.{kind}": getattr(model.head, kind).detach() for kind in ("weight", "bias")}
    found["enc.transformer.encoder.query_prompt_embeddings"] = model.vqt.queries.detach()
    for name, value in model.vqt.vit.state_dict().items():
        place, _, kind = name.rpartition(".")
        if name in OUTSIDE or place in OUTSIDE:
            found[f"enc.transformer.{OUTSIDE[name] if name in OUTSIDE else f'{OUTSIDE[place]}.{kind}'}"] = value
            continue
        _, layer, inside = place.split(".", 2)
        start = f"enc.transformer.encoder.layer.{layer}"
        if inside == "attn.qkv":
            for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                found[f"{start}.attn.{part}.{kind}"] = third
        else:
            found[f"{start}.{INSIDE[inside]}.{kind}"] = value
    return found


@pytest.mark.parametrize("num_classes", [0, 10])
def test_a_model_under_their_names_loads_also_beside_a_classifier_of_the_backbone(
    num_classes: int, images: Tensor
) -> None:
    model = VQTClassifier(VQT(randomize(timm_vit()), 2), 5).eval()
    tensors = theirs(model)
    assert is_official(tensors) and not is_official(model.state_dict())
    fresh = VQTClassifier(VQT(timm_vit(num_classes=num_classes), 2), 5).eval()
    load_tensors(fresh, fresh.rename_keys(tensors), "theirs")
    assert torch.equal(fresh(images), model(images))
    del tensors["enc.transformer.encoder.layer.1.attn.key.bias"]
    with pytest.raises(ValueError, match=r"does not fit vqt: missing blocks.1.attn.qkv.bias"):
        fresh.rename_keys(tensors)
