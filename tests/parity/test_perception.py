"""AiT's VQ-VAE of depth maps and masks against its authors' own outputs; every number of a model is in its file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vistok.layers.ait_vqvae import AitVqvae
from vistok.weights import load_tensors

# The authors' names of losses, where ours differ.
LOSSES = {"mse_ignore_zero": "mse_above_zero", "si_log": "silog"}
NAMES = {
    "downsample_ratio": "downsample",
    "num_tokens": "codes",
    "codebook_dim": "codebook_dim",
    "hidden_dim": "hidden",
    "num_resnet_blocks": "blocks",
    "residul_type": "block",
    "use_norm": "use_norm",
    "max_value": "max_value",
    "channels": "channels",
    "commitment_cost": "commitment",
    "ema_decay": "decay",
}
# image_size says how large the input is, the objective follows from the loss, and the authors' class reads no others.
TOLD_OTHERWISE = {"image_size", "train_objective", "loss_type"}
UNUSED = {"temperature", "straight_through", "kl_div_loss_weight", "simplify", "alpha", "num_classes"}


def is_vqvae(config: dict[str, Any]) -> bool:
    return {"num_tokens", "downsample_ratio"} <= set(config)


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    unknown = set(config) - set(NAMES) - TOLD_OTHERWISE - UNUSED
    assert not unknown, f"settings that no one maps: {unknown}"
    loss = config["loss_type"]
    return {NAMES[name]: value for name, value in config.items() if name in NAMES} | {"loss": LOSSES.get(loss, loss)}


def build(case: Any) -> AitVqvae:
    model = AitVqvae(**settings_of(case.config), init="official")
    own = {name.removeprefix("sd."): value for name, value in case.tensors.items() if name.startswith("sd.")}
    load_tensors(model, own, "the reference state dict does not fit")
    return model


def near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual.detach(), expected, rtol=0, atol=tolerance)


@pytest.mark.parity("perception/*.safetensors", is_vqvae)
def test_encoding_and_decoding(case: Any) -> None:
    model, data = build(case).eval(), case.tensors
    with torch.no_grad():
        near(model.features(data["input"]), data["encoder_out"], 5e-6)
        assert torch.equal(model.encode(data["input"]), data["indices"])
        near(model.decode(data["indices"]), data["decode"], 5e-6)
        out = model(data["input"])
    near(out.loss, data["eval_total_loss"], 1e-6)
    near(out.reconstruction, data["eval_recon_loss"], 1e-6)
    near(out.maps, data["eval_recon"], 5e-6)
    assert torch.equal(model.codes.codebook, data["sd._vq_vae._embedding"])


@pytest.mark.parity("perception/*.safetensors", is_vqvae)
def test_one_training_step(case: Any) -> None:
    model, data = build(case).train(), case.tensors
    out = model(data["input"])
    out.loss.backward()
    near(out.loss, data["train_total_loss"], 1e-6)
    near(out.reconstruction, data["train_recon_loss"], 1e-6)
    near(out.maps, data["train_recon"], 5e-6)
    gradient = model.encoder[0].weight.grad
    assert isinstance(gradient, Tensor)
    near(gradient, data["grad_encoder0_w"], 1e-6)
    after = {name.removeprefix("after_step."): value for name, value in data.items() if name.startswith("after_step.")}
    assert after
    for name, value in after.items():
        near(model.codes.get_buffer(name), value, 5e-6)


@pytest.mark.parity("perception/*.safetensors", lambda config: True)
def test_every_file_and_tensor_is_compared(path: Path, case: Any) -> None:
    strangers = [other.name for other in path.parent.iterdir() if other.suffix not in (".safetensors", ".md")]
    assert not strangers, f"files of a kind that nothing compares: {strangers}"
    assert is_vqvae(case.config), f"nothing compares {path.name}"
    known = {"input", "encoder_out", "indices", "decode", "grad_encoder0_w"}
    stray = {name for name in case.tensors if not name.startswith(("sd.", "eval_", "train_", "after_step."))} - known
    assert not stray, f"tensors that no test looks at: {stray}"
