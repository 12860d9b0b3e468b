"""The SEED tokenizer against its authors' code: ids exact, features and embeddings to 5e-5, causality to the bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vistok
from vistok.protocols import Quantized
from vistok.tokenizers.seed import Seed
from vistok.tokens import TokenTensor
from vistok.train.seed_losses import reconstruction_loss

OUTPUTS = (
    "query_output", "down", "indices", "z_q", "up", "image_embed", "recon_s", "loss_vq_raw", "loss_recon_s_raw",
)  # fmt: skip
whole_tokenizer = pytest.mark.parity("discrete/seed_*", lambda config: "qformer_layers" in config)


def model_of(case: Any, folder: Path) -> Seed:
    """The tokenizer of a file, its weights loaded the way a user's checkpoint is; a tower of the right width only."""
    config, data = case.config, case.tensors
    weights = {name.removeprefix("sd."): value for name, value in data.items() if name.startswith("sd.")}
    assert weights["query_tokens"].shape[1] == config["num_query_tokens"]
    width = config["encoder_width"]
    settings: dict[str, Any] = {
        "tower": {
            "method": "transformers",
            "settings": {
                "hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 1,
                "patch_size": 8,
            },
        },
        "image_size": 8,
        "queries": config["num_query_tokens"],
        "qformer": {
            "width": config["hidden_size"],
            "layers": config["qformer_layers"],
            "heads": config["qformer_heads"],
            "hidden": config["ffn"],
            "cross_every": config["cross_attention_freq"],
            "eps": config["layer_norm_eps"],
        },
        "quantizer": {
            "method": "vq_learned",
            "dim": config["codebook_dim"],
            "codebook_size": config["codebook_size"],
            "commitment_weight": config["beta"],
            "legacy": True,
        },
        "decoder_layers": config["decode_depth"],
        "decoder_heads": config["decode_heads"],
        "embedding_dim": config["image_features_dim"],
    }  # fmt: skip
    if config["use_qformer_image"]:
        # The number of reverse layers is not given: the checkpoint tells.
        settings |= {"head": "qformer", "reverse_tokens": weights["reverse_tokens"].shape[1]}
    else:
        settings["mlp_widths"] = [weights[f"image_down.{place}.weight"].shape[0] for place in (0, 2, 4)]
    tower = Seed(**settings).visual_encoder.net.state_dict()
    path = folder / "seed_quantizer.pt"
    torch.save(weights | {f"visual_encoder.{name}": value for name, value in tower.items()}, path)
    loaded: Any = vistok.tokenizer("seed", checkpoint=path, **settings)
    return loaded.eval()


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected.reshape(actual.shape), rtol=5e-5, atol=5e-5)


@pytest.mark.parity("discrete/seed_*", lambda config: True)
def test_every_seed_file_of_discrete_is_of_a_kind_that_is_tested(path: Path, case: Any) -> None:
    assert "qformer_layers" in case.config or path.stem.startswith("seed_vq"), f"{path.name}: no test for such a file"
    if "qformer_layers" in case.config:
        stored = {name for name in case.tensors if not name.startswith("sd.")}
        assert stored == {"in.vit_out", "in.image_embeds_after_ln", *(f"out.{name}" for name in OUTPUTS)}


@whole_tokenizer
def test_seed_discrete_every_stage_and_both_losses(case: Any, tmp_path: Path) -> None:
    data = case.tensors
    model = model_of(case, tmp_path)
    with torch.no_grad():
        features = model.normalised(data["in.vit_out"])
        close(features, data["in.image_embeds_after_ln"])
        queries = model.causal_queries(features)
        close(queries, data["out.query_output"])
        down = model.encode_task_layer(queries)
        close(down, data["out.down"])
        quantized: Quantized = model.quantizer(down)
        assert torch.equal(quantized.indices, data["out.indices"].long())
        close(quantized.embeds, data["out.z_q"])
        close(quantized.loss, data["out.loss_vq_raw"])
        u = model.widened(quantized.embeds)
        close(u, data["out.up"])
        close(model.embedding(u), data["out.image_embed"])
        made = model.reconstruct(queries)
        close(made.embedding, data["out.image_embed"])
        close(made.queries, data["out.recon_s"])
        close(reconstruction_loss(made.queries, made.target), data["out.loss_recon_s_raw"])


@whole_tokenizer
def test_seed_discrete_ids_alone_give_the_embedding(case: Any, tmp_path: Path) -> None:
    data = case.tensors
    model = model_of(case, tmp_path)
    tokens = TokenTensor(spec=model.spec, indices=data["out.indices"].long()).check()
    with torch.no_grad():
        close(model.decode_embedding(tokens), data["out.image_embed"])
        close(model.quantizer.lookup(tokens.indices), data["out.z_q"])


@whole_tokenizer
def test_seed_discrete_no_output_depends_on_a_later_query(case: Any, tmp_path: Path) -> None:
    data = case.tensors
    model = model_of(case, tmp_path)
    features = data["in.image_embeds_after_ln"]
    count = model.query_tokens.shape[1]
    with torch.no_grad():
        before = model.causal_queries(features)
        for place in (1, count * 20 // 32, count - 1):
            kept = model.query_tokens[:, place].clone()
            generator = torch.Generator().manual_seed(place)
            model.query_tokens[:, place] = torch.randn(kept.shape, generator=generator)
            after = model.causal_queries(features)
            model.query_tokens[:, place] = kept
            assert torch.equal(before[:, :place], after[:, :place])
            assert not torch.equal(before[:, place:], after[:, place:])
