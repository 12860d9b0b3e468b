"""Quantizers against vector-quantize-pytorch's own outputs: ids exact, numbers to 1e-5."""

from typing import Any

import pytest
import torch
from torch import Tensor

import vistok
from vistok.protocols import Quantized

VQ_SETTINGS = {
    "dim": "dim",
    "codebook_size": "codebook_size",
    "decay": "decay",
    "commitment_weight": "commitment_weight",
}
# The library's defaults, where ours differ.
VQ_DEFAULTS = {"decay": 0.8, "commitment_weight": 1.0, "kmeans_iterations": 0, "dead_code_threshold": 0.0}


def covered(config: dict[str, Any]) -> bool:
    return set(config) <= {*VQ_SETTINGS, "rotation_trick", "use_cosine_sim"}


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected.reshape(actual.shape), rtol=1e-5, atol=1e-5)


def run(quantizer: Any, x: Tensor, upstream: Tensor) -> tuple[Quantized, Tensor]:
    """Output and the gradient of sum(output * upstream) + loss."""
    x = x.clone().requires_grad_()
    out: Quantized = quantizer(x)
    ((out.embeds * upstream).sum() + out.loss).backward()
    assert x.grad is not None
    return out, x.grad


@pytest.mark.parity("discrete/vqp_fsq_*", lambda config: set(config) == {"levels"})
def test_fsq(case: Any) -> None:
    config, data = case.config, case.tensors
    quantizer = vistok.quantizer("fsq", levels=config["levels"])
    out, gradient = run(quantizer, data["x"], data["up"])
    assert torch.equal(out.indices, data["i"].long())
    close(out.embeds.detach(), data["q"])
    close(gradient, data["gx"])
    close(quantizer.lookup(data["i"].long()), data["codes_from_i"])


@pytest.mark.parity("discrete/vqp_lfq_*", lambda c: "num_codebooks" not in c)
def test_lfq_and_bsq(case: Any) -> None:
    config, data = case.config, case.tensors
    quantizer: Any = vistok.quantizer(
        "bsq" if config.get("spherical") else "lfq",
        dim=config["dim"],
        temperature=1 / config["inv_temperature"],
        entropy_weight=config["entropy_loss_weight"],
        batch_entropy_weight=config.get("diversity_gamma", 1.0),
        commitment_weight=config.get("commitment_loss_weight", 0.25),
        entropy_group=config["dim"],
    )
    out, gradient = run(quantizer, data["x"], data["up"])
    assert torch.equal(out.indices, data["i"].long())
    close(out.embeds.detach(), data["q"])
    # The library clamps probabilities at 1e-5 inside its logarithms.
    for ours, theirs in (("sample_entropy", "per_sample_entropy"), ("batch_entropy", "batch_entropy")):
        torch.testing.assert_close(out.stats[ours], data[theirs].reshape(()), rtol=1e-3, atol=1e-3)
    close(out.stats["commitment_loss"], data["commit"])
    torch.testing.assert_close(out.loss.detach(), data["aux"].reshape(()), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(gradient, data["gx"], rtol=1e-3, atol=1e-3)
    close(quantizer.lookup(data["i"].long()), data["codes_from_i"])


def load(quantizer: Any, state: dict[str, Tensor], prefix: str) -> None:
    own = quantizer.library.state_dict()
    quantizer.library.load_state_dict(own | {name: state[prefix + name] for name in own if prefix + name in state})


def assert_state(quantizer: Any, state: dict[str, Tensor], prefix: str) -> None:
    for name, value in quantizer.library.state_dict().items():
        if prefix + name in state and value.is_floating_point():
            close(value, state[prefix + name])


@pytest.mark.parity("discrete/vqp_vq_*", covered)
def test_vq_in_eval_and_over_two_training_steps(case: Any) -> None:
    config, data = case.config, case.tensors
    settings = VQ_DEFAULTS | {VQ_SETTINGS[name]: value for name, value in config.items() if name in VQ_SETTINGS}
    quantizer: Any = vistok.quantizer(
        "vq",
        metric="cosine" if config.get("use_cosine_sim") else "l2",
        gradient="rotation" if config.get("rotation_trick", True) else "straight_through",
        **settings,
    )
    load(quantizer, data, "before.")
    evaluated: Quantized = quantizer.eval()(data["x"])
    assert torch.equal(evaluated.indices, data["eval.i"].long())
    close(evaluated.embeds.detach(), data["eval.q"])
    quantizer.train()
    for step, x in (("1", data["x"]), ("2", data["x2"])):
        out, gradient = run(quantizer, x, data[f"train{step}.up"])
        assert torch.equal(out.indices, data[f"train{step}.i"].long())
        close(out.embeds.detach(), data[f"train{step}.q"])
        close(out.loss.detach(), data[f"train{step}.loss"])
        close(gradient, data[f"train{step}.gx"])
        assert_state(quantizer, data, f"after{step}.")


def rows(feature_map: Tensor) -> Tensor:
    """[B, D, H, W] -> [B, H, W, D]."""
    return feature_map.movedim(1, -1)


@pytest.mark.parity("discrete/ibq_*", lambda config: "codebook_size" in config and "beta" in config)
def test_ibq(case: Any) -> None:
    config, data = case.config, case.tensors
    quantizer: Any = vistok.quantizer(
        "ibq",
        dim=config["dim"],
        codebook_size=config["codebook_size"],
        beta=config["beta"],
        entropy_weight=0.05 if "entropy_temperature" in config else 0.0,
        temperature=config.get("entropy_temperature", 0.01),
        sample_entropy_weight=config.get("sample_minimization_weight", 1.0),
        batch_entropy_weight=config.get("batch_maximization_weight", 1.0),
    )
    quantizer.codebook.data.copy_(data["embedding.weight"])
    out, gradient = run(quantizer, rows(data["z"]), rows(data["upstream_grad"]))
    assert torch.equal(out.indices.flatten(), data["indices"].long())
    close(out.embeds.detach(), rows(data["z_q"]))
    loss = data["quant_loss"]
    if "entropy_loss" in data:
        close(out.stats["sample_entropy"], data["sample_entropy"])
        close(out.stats["batch_entropy"], data["avg_entropy"])
        loss = loss + 0.05 * data["entropy_loss"]
    close(out.loss.detach(), loss)
    close(gradient, rows(data["grad_z"]))
    close(quantizer.codebook.grad, data["grad_embedding"])
