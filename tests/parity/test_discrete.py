"""Quantizers against vector-quantize-pytorch's own outputs: ids exact, numbers to 1e-5."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vistok
from vistok.protocols import Quantized

from .conftest import read

VQ_SETTINGS = {
    "dim": "dim",
    "codebook_size": "codebook_size",
    "decay": "decay",
    "commitment_weight": "commitment_weight",
}
# The library's defaults, where ours differ.
VQ_DEFAULTS = {"decay": 0.8, "commitment_weight": 1.0, "kmeans_iterations": 0, "dead_code_threshold": 0.0}


def gradient_of(config: dict[str, Any]) -> str:
    return "rotation" if config.get("rotation_trick", True) else "straight_through"


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


def rows(feature_map: Tensor) -> Tensor:
    """[B, D, H, W] -> [B, H, W, D]."""
    return feature_map.movedim(1, -1)


@pytest.mark.parity("discrete/vqp_fsq_*", lambda config: set(config) <= {"levels", "preserve_symmetry"})
def test_fsq(case: Any) -> None:
    config, data = case.config, case.tensors
    quantizer = vistok.quantizer("fsq_symmetric" if config.get("preserve_symmetry") else "fsq", levels=config["levels"])
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


@pytest.mark.parity("discrete/openmagvit2_lfq*", lambda config: True)
def test_lfq_of_open_magvit2(case: Any) -> None:
    config, data = case.config, case.tensors
    quantizer: Any = vistok.quantizer(
        "lfq",
        dim=config["dim"],
        bit_order="lsb",
        entropy_weight=0.1,
        sample_entropy_weight=config["sample_minimization_weight"],
        batch_entropy_weight=config["batch_maximization_weight"],
        commitment_weight=0.25,
        entropy_group=config["dim"],
    )
    out, gradient = run(quantizer, rows(data["z"]), rows(data["upstream_grad"]))
    assert torch.equal(out.indices.flatten(), data["indices"].long())
    close(out.embeds.detach(), rows(data["z_q"]))
    close(out.stats["sample_entropy"], data["per_sample_entropy"])
    close(out.stats["commitment_loss"], data["commitment"])
    # The authors add 1e-5 inside the logarithm of the batch entropy, 128 codes wide.
    torch.testing.assert_close(out.stats["batch_entropy"], data["codebook_entropy"].reshape(()), rtol=0, atol=2e-3)
    loss = 0.1 * data["entropy_aux_loss"] + 0.25 * data["commitment"]
    torch.testing.assert_close(out.loss.detach(), loss.reshape(()), rtol=0, atol=3e-4)
    torch.testing.assert_close(gradient, rows(data["grad_z"]), rtol=1e-4, atol=1e-4)
    close(quantizer.lookup(out.indices), data["codes_from_indices"])
    evaluated: Quantized = quantizer.eval()(rows(data["z"]))
    assert torch.equal(evaluated.indices.flatten(), data["eval_indices"].long())
    close(evaluated.embeds, rows(data["eval_z_q"]))


@pytest.mark.parity("discrete/vqp_fsq_*", lambda config: set(config) == {"levels", "num_codebooks"})
def test_fsq_in_groups(case: Any) -> None:
    config, data = case.config, case.tensors
    level = {"method": "fsq", "levels": config["levels"]}
    quantizer = vistok.quantizer("grouped", groups=config["num_codebooks"], quantizer=level)
    out, gradient = run(quantizer, data["x"], data["up"])
    assert torch.equal(out.indices, data["i"].long())
    close(out.embeds.detach(), data["q"])
    close(gradient, data["gx"])
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
        gradient=gradient_of(config),
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


@pytest.mark.parity("discrete/ibq_*", lambda config: {"codebook_size", "dim"} <= set(config))
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


@pytest.mark.parity("discrete/seed_vq*", lambda config: True)
@pytest.mark.parametrize("form", ["legacy", "fixed"])
def test_seed_vq(case: Any, form: str) -> None:
    config, data = case.config, case.tensors
    quantizer: Any = vistok.quantizer(
        "vq_learned",
        dim=config["dim"],
        codebook_size=config["codebook_size"],
        commitment_weight=config["beta"],
        legacy=form == "legacy",
    )
    quantizer.embedding.data.copy_(data["embedding.weight"])
    z = data["z"].clone().requires_grad_()
    out: Quantized = quantizer(z)
    ((out.embeds * data["upstream_grad"]).sum() + 5 * out.loss).backward()
    assert torch.equal(out.indices.flatten(), data["indices"].long())
    close(out.embeds.detach(), data["z_q"])
    close(quantizer.lookup(out.indices).detach(), data["entry_of_indices"])
    close(out.loss.detach(), data[f"{form}.loss"])
    close(z.grad, data[f"{form}.grad_z"])  # type: ignore[arg-type]
    rows = data[f"{form}.grad_emb_rows"].long()
    assert torch.equal(quantizer.embedding.grad.abs().sum(1).nonzero().flatten(), rows)
    close(quantizer.embedding.grad[rows], data[f"{form}.grad_emb_vals"])


@pytest.mark.parity("discrete/llamagen_*", lambda config: True)
def test_llamagen_vq(case: Any) -> None:
    config, data = case.config, case.tensors
    weights = data["sd.quantize.embedding.weight"]
    quantizer: Any = vistok.quantizer(
        "vq_cosine",
        dim=weights.shape[1],
        codebook_size=len(weights),
        commitment_weight=config["commit_loss_beta"],
        entropy_weight=config["entropy_loss_ratio"],
    )
    quantizer.embedding.data.copy_(weights)
    evaluated: Quantized = quantizer.eval()(rows(data["h"]))
    assert torch.equal(evaluated.indices.flatten(), data["indices"].long())
    close(evaluated.embeds.detach(), rows(data["z_q"]))
    out, gradient = run(quantizer.train(), rows(data["h"]), rows(data["train.up"]))
    close(out.embeds.detach(), rows(data["train.z_q"]))
    close(out.loss.detach(), data["train.vq_loss"] + data["train.commit_loss"] + data["train.entropy_loss"])
    close(gradient, rows(data["train.grad_h"]))
    close(quantizer.embedding.grad, data["train.grad_embedding"])


@pytest.mark.parity("discrete/vqp_simvq_*", lambda config: True)
def test_simvq(case: Any) -> None:
    config, data = case.config, case.tensors
    quantizer: Any = vistok.quantizer(
        "simvq",
        dim=config["dim"],
        codebook_size=config["codebook_size"],
        gradient=gradient_of(config),
    )
    load(quantizer, data, "sd.")
    out, gradient = run(quantizer, data["x"], data["up"])
    assert torch.equal(out.indices, data["i"].long())
    close(out.embeds.detach(), data["q"])
    close(out.loss.detach(), data["loss"])
    close(gradient, data["gx"])
    close(quantizer.library.code_transform.weight.grad, data["grad.code_transform.weight"])
    close(quantizer.lookup(data["i"].long()).detach(), data["codes"])


@pytest.mark.parity("discrete/vqp_vq_*", lambda c: c.get("learnable_codebook") and "orthogonal_reg_weight" not in c)
def test_vq_trained_by_gradient(case: Any) -> None:
    config, data = case.config, case.tensors
    # The library detaches neither side of its one loss.
    weights = dict.fromkeys(("codebook_weight", "commitment_weight"), config.get("commitment_weight", 1.0))
    weights["gradient"] = gradient_of(config)
    quantizer: Any = vistok.quantizer("vq_learned", dim=config["dim"], codebook_size=config["codebook_size"], **weights)
    quantizer.embedding.data.copy_(data["before._codebook.embed"][0])
    out, gradient = run(quantizer, data["x"], data["train1.up"])
    assert torch.equal(out.indices, data["train1.i"].long())
    close(out.embeds.detach(), data["train1.q"])
    close(out.loss.detach() / 2, data["train1.loss"])  # ours counts the distance once for each side
    close(gradient, data["train1.gx"])
    close(quantizer.embedding.grad, data["train1.grad._codebook.embed"])


LEVEL = {"method": "vq", "decay": 0.8, "commitment_weight": 1.0, "kmeans_iterations": 0, "dead_code_threshold": 0.0}


def residual_settings(config: dict[str, Any]) -> dict[str, Any]:
    level = LEVEL | {"dim": config["dim"] // config.get("groups", 1), "codebook_size": config["codebook_size"]}
    return {"levels": config["num_quantizers"], "shared": config.get("shared_codebook", False), "quantizer": level}


def check_residual(quantizer: Any, levels: dict[str, Any], data: dict[str, Tensor], ids: dict[str, Tensor]) -> None:
    """Eval and one training step; levels: by the prefix of their keys; ids: [B, N, all Q]."""
    for prefix, level in levels.items():
        load(level, data, f"before.{prefix}")
    evaluated: Quantized = quantizer.eval()(data["x"])
    assert torch.equal(evaluated.indices, ids["eval"])
    close(evaluated.embeds.detach(), data["eval.q"])
    out, gradient = run(quantizer.train(), data["x"], data["train1.up"])
    assert torch.equal(out.indices, ids["train1"])
    close(out.embeds.detach(), data["train1.q"])
    close(out.loss.detach(), data["train1.loss"].sum())
    close(gradient, data["train1.gx"])
    for prefix, level in levels.items():
        assert_state(level, data, f"after1.{prefix}")


@pytest.mark.parity("discrete/vqp_rvq*", lambda config: not config.get("rotation_trick", True))
def test_residual(case: Any) -> None:
    quantizer: Any = vistok.quantizer("residual", **residual_settings(case.config))
    levels = {f"layers.{index}.": level for index, level in enumerate(quantizer.quantizers)}
    ids = {name: case.tensors[f"{name}.i"].long() for name in ("eval", "train1")}
    check_residual(quantizer, levels, case.tensors, ids)


@pytest.mark.parity("discrete/vqp_grvq*", lambda config: not config.get("rotation_trick", True))
def test_grouped_residual(case: Any) -> None:
    inner = {"method": "residual", **residual_settings(case.config)}
    quantizer: Any = vistok.quantizer("grouped", groups=case.config["groups"], quantizer=inner)
    levels = {
        f"rvqs.{group}.layers.{index}.": level
        for group, residual in enumerate(quantizer.quantizers)
        for index, level in enumerate(residual.quantizers)
    }
    # [G, B, N, Q] -> [B, N, G Q].
    ids = {name: case.tensors[f"{name}.i"].long().permute(1, 2, 0, 3).flatten(2) for name in ("eval", "train1")}
    check_residual(quantizer, levels, case.tensors, ids)


def load_projections(quantizer: Any, state: dict[str, Tensor], prefix: str) -> None:
    for name in ("project_in", "project_out"):
        for part in ("weight", "bias"):
            getattr(getattr(quantizer, name), part).data.copy_(state[f"{prefix}{name}.{part}"])


@pytest.mark.parity(
    "discrete/vqp_fsq_*", lambda c: "dim" in c and "preserve_symmetry" not in c and "num_codebooks" not in c
)
def test_fsq_between_projections(case: Any) -> None:
    config, data = case.config, case.tensors
    inner = {"method": "fsq", "levels": config["levels"]}
    quantizer: Any = vistok.quantizer("projected", dim=config["dim"], quantizer=inner)
    load_projections(quantizer, data, "sd.")
    out, gradient = run(quantizer, data["x"], data["up"])
    assert torch.equal(out.indices, data["i"].long())
    close(out.embeds.detach(), data["q"])
    close(gradient, data["gx"])
    close(quantizer.lookup(data["i"].long()).detach(), data["codes_from_i"])


@pytest.mark.parity("discrete/vqp_lfq_*", lambda config: "num_codebooks" in config and not config.get("spherical"))
def test_lfq_in_groups_between_projections(case: Any) -> None:
    config, data = case.config, case.tensors
    groups = config["num_codebooks"]
    level = {
        "method": "lfq",
        "dim": config["codebook_size"].bit_length() - 1,
        "temperature": 1 / config["inv_temperature"],
        # The library's terms are means over its codebooks, ours sums.
        "entropy_weight": config["entropy_loss_weight"] / groups,
        "batch_entropy_weight": config.get("diversity_gamma", 1.0),
        "commitment_weight": config.get("commitment_loss_weight", 0.0) / groups,
        "entropy_group": config["codebook_size"],
    }
    inner = {"method": "grouped", "groups": groups, "quantizer": level}
    quantizer: Any = vistok.quantizer("projected", dim=config["dim"], quantizer=inner)
    load_projections(quantizer, data, "sd.")
    out, gradient = run(quantizer, data["x"], data["up"])
    assert torch.equal(out.indices, data["i"].long())
    close(out.embeds.detach(), data["q"])
    # The library clamps probabilities at 1e-5 inside its logarithms.
    torch.testing.assert_close(out.loss.detach(), data["aux"].reshape(()), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(gradient, data["gx"], rtol=1e-3, atol=1e-3)
    close(quantizer.lookup(data["i"].long()).detach(), data["codes_from_i"])


@pytest.mark.parity(
    "discrete/vqp_vq_*", lambda c: "codebook_dim" in c and c.get("heads", 1) == 1 or c.get("separate_codebook_per_head")
)
def test_vq_between_projections(case: Any) -> None:
    config, data = case.config, case.tensors
    heads = config.get("heads", 1)
    level = LEVEL | {
        "dim": config["codebook_dim"],
        "decay": config.get("decay", 0.8),
        "codebook_size": config["codebook_size"],
        "gradient": gradient_of(config),
        "commitment_weight": config.get("commitment_weight", 1.0)
        / heads,  # the library's is a mean over heads, ours a sum
    }
    inner = {"method": "grouped", "groups": heads, "quantizer": level}
    quantizer: Any = vistok.quantizer("projected", dim=config["dim"], quantizer=inner)
    load_projections(quantizer, data, "before.")
    books = quantizer.quantizer.quantizers
    for head, book in enumerate(books):
        load(book, {name: value[head : head + 1] if value.ndim else value for name, value in data.items()}, "before.")
    evaluated: Quantized = quantizer.eval()(data["x"])
    assert torch.equal(evaluated.indices, data["eval.i"].long())
    close(evaluated.embeds.detach(), data["eval.q"])
    out, gradient = run(quantizer.train(), data["x"], data["train1.up"])
    assert torch.equal(out.indices, data["train1.i"].long())
    close(out.embeds.detach(), data["train1.q"])
    close(out.loss.detach(), data["train1.loss"])
    close(gradient, data["train1.gx"])
    for name in ("project_in", "project_out"):
        close(getattr(quantizer, name).weight.grad, data[f"train1.grad.{name}.weight"])
        close(getattr(quantizer, name).bias.grad, data[f"train1.grad.{name}.bias"])
    for head, book in enumerate(books):
        close(book.codebook, data["after1._codebook.embed"][head])


@pytest.mark.parity("discrete/vqp_vq_*", lambda config: config.get("accept_image_fmap", False))
def test_vq_of_a_feature_map(case: Any) -> None:
    config, data = case.config, case.tensors
    quantizer: Any = vistok.quantizer("vq", dim=config["dim"], codebook_size=config["codebook_size"])
    load(quantizer, data, "sd.")
    out: Quantized = quantizer.eval()(rows(data["x"]))
    assert torch.equal(out.indices, data["i"].long())
    close(out.embeds, rows(data["q"]))
    close(quantizer.lookup(out.indices), rows(data["out"]))


@pytest.mark.parity("discrete/ibq_*", lambda config: "embed_dim" in config)
def test_the_quantizer_inside_the_ibq_model(case: Any) -> None:
    data = case.tensors
    weights = data["sd.quantize.embedding.weight"]
    size, dim = weights.shape
    quantizer: Any = vistok.quantizer("ibq", dim=dim, codebook_size=size, beta=case.config["beta"], entropy_weight=0.0)
    quantizer.codebook.data.copy_(weights)
    out: Quantized = quantizer.eval()(rows(data["h"]))
    assert torch.equal(out.indices.flatten(), data["indices"].long())
    close(out.embeds.detach(), rows(data["z_q"]))
    close(out.loss.detach(), data["quant_loss"])


@pytest.mark.parity("discrete/openmagvit2_*", lambda config: "z_channels" in config)
def test_the_quantizer_inside_the_open_magvit2_model(case: Any) -> None:
    h = rows(case.tensors["h"])
    quantizer: Any = vistok.quantizer("lfq", dim=h.shape[-1], bit_order="lsb")
    out: Quantized = quantizer.eval()(h)
    assert torch.equal(out.indices.flatten(), case.tensors["indices"].long())
    assert torch.equal(out.embeds, rows(case.tensors["z_q"]))


@pytest.mark.parity("discrete/vqp_vq_*", lambda config: "orthogonal_reg_weight" in config)
def test_vq_with_diversity_and_orthogonal_regulariser(case: Any) -> None:
    config, data = case.config, case.tensors
    commitment = config.get("commitment_weight", 1.0)
    quantizer: Any = vistok.quantizer(
        "vq_learned",
        dim=config["dim"],
        codebook_size=config["codebook_size"],
        codebook_weight=commitment,  # the library detaches neither side of its one loss
        commitment_weight=commitment,
        gradient=gradient_of(config),
        diversity_weight=config["codebook_diversity_loss_weight"],
        diversity_temperature=config["codebook_diversity_temperature"],
        orthogonal_weight=config["orthogonal_reg_weight"],
    )
    quantizer.embedding.data.copy_(data["before._codebook.embed"][0])
    evaluated: Quantized = quantizer.eval()(data["x"])
    assert torch.equal(evaluated.indices, data["eval.i"].long())
    close(evaluated.embeds.detach(), data["eval.q"])
    # The library's diversity is a mean over positions, each over the batch; all other terms are means over everything.
    positions = data["x"].shape[1]
    x = data["x"].clone().requires_grad_()
    parts: list[Quantized] = [quantizer.train()(x[:, position]) for position in range(positions)]
    embeds = torch.stack([part.embeds for part in parts], dim=1)
    loss = torch.stack([part.loss for part in parts]).mean()
    ((embeds * data["train1.up"]).sum() + loss).backward()
    assert x.grad is not None
    assert torch.equal(torch.stack([part.indices for part in parts], dim=1), data["train1.i"].long())
    close(embeds.detach(), data["train1.q"])
    once = torch.stack([part.stats["commitment_loss"] for part in parts]).mean()
    # The library clamps probabilities at 1e-5 inside its logarithm.
    torch.testing.assert_close(loss.detach() - commitment * once, data["train1.loss"].reshape(()), rtol=0, atol=1e-4)
    close(x.grad, data["train1.gx"])
    close(quantizer.embedding.grad, data["train1.grad._codebook.embed"])


@pytest.mark.parity("discrete/vqp_rfsq*", lambda config: True)
def test_residual_fsq(case: Any) -> None:
    config, data = case.config, case.tensors
    inner = {"method": "residual_fsq", "levels": config["levels"], "depth": config["num_quantizers"]}
    projected = "sd.project_in.weight" in data
    quantizer: Any = (
        vistok.quantizer("projected", dim=config["dim"], quantizer=inner)
        if projected
        else (vistok.quantizer("residual_fsq", levels=config["levels"], depth=config["num_quantizers"]))
    )
    if projected:
        load_projections(quantizer, data, "sd.")
    out: Quantized = quantizer(data["x"])
    assert torch.equal(out.indices, data["i"].long())
    close(out.embeds.detach(), data["q"])
    close(quantizer.lookup(data["i"].long()).detach(), data["out"])


def levels_of(config: dict[str, Any]) -> list[int]:
    """The levels whose resolution attends: the authors count them from the training resolution."""
    sides = [config["resolution"] // 2**level for level in range(len(config["ch_mult"]))]
    return [level for level, side in enumerate(sides) if side in config["attn_resolutions"]]


def load_model(model: Any, data: dict[str, Tensor]) -> Any:
    """The authors' state dict, every key accounted for."""
    state = {name.removeprefix("sd."): value for name, value in data.items() if name.startswith("sd.")}
    model.load_state_dict(model.rename_keys(state))
    return model.eval()


def near(actual: Tensor, expected: Tensor) -> None:
    """The tolerance of convolutional models."""
    torch.testing.assert_close(actual, expected.reshape(actual.shape), rtol=5e-5, atol=5e-5)


def check_model(model: Any, data: dict[str, Tensor]) -> None:
    """Features, ids, codes and pixels in [-1, 1]; then the same through the public interface."""
    with torch.no_grad():
        features = model.features(data["x"])
        near(features, data["h"])
        quantized: Quantized = model.quantize(rows(features).flatten(1, 2))
        assert torch.equal(quantized.indices.flatten(), data["indices"].long())
        near(quantized.embeds, rows(data["z_q"]).flatten(1, 2))
        near(model.pixels(data["z_q"]), data["recon"])
        images = (data["x"] + 1) / 2
        if 0 <= float(images.min()) <= float(images.max()) <= 1:
            tokens = model.encode(images)
            assert torch.equal(tokens.indices.flatten(), data["indices"].long())
        codes = model.quantize.lookup(data["indices"].long().view(len(images), -1))
        recon = model.pixels(codes.transpose(1, 2).unflatten(2, data["h"].shape[2:]))
        near(recon, data.get("recon_from_codes", data["recon"]))


def ibq_sizes(config: dict[str, Any]) -> dict[str, Any]:
    sizes = {name: config[name] for name in ("ch", "ch_mult", "num_res_blocks", "z_channels", "codebook_size", "beta")}
    return sizes | {"dim": config["embed_dim"], "attention_levels": levels_of(config)}


@pytest.mark.parity("discrete/ibq_*", lambda config: "ch_mult" in config)
def test_ibq_model(case: Any) -> None:
    config, data = case.config, case.tensors
    model = load_model(vistok.tokenizer("ibq_16384", **ibq_sizes(config), entropy_weight=0.0), data)
    check_model(model, data)
    close(model.quantize(rows(data["h"]).flatten(1, 2)).loss.detach(), data["quant_loss"])


@pytest.mark.parity("discrete/llamagen_*", lambda config: "ch_mult" in config)
def test_llamagen_model(case: Any) -> None:
    config, data = case.config, case.tensors
    sizes = {name: config[name] for name in ("ch", "ch_mult", "num_res_blocks", "z_channels", "codebook_size")}
    options = {"beta": config["commit_loss_beta"], "entropy_weight": config["entropy_loss_ratio"]}
    model = load_model(vistok.tokenizer("llamagen_vq16", **sizes, **options, dim=config["codebook_embed_dim"]), data)
    check_model(model, data)
    near(model.quantize.lookup(data["indices"].long()), rows(data["entry"]).flatten(0, 2))
    out: Quantized = model.quantize.train()(rows(data["h"]).flatten(1, 2))
    close(out.loss.detach(), data["train.vq_loss"] + data["train.commit_loss"] + data["train.entropy_loss"])
    # The authors' history of ids starts as zeros, so that code 0 counts as used.
    used = torch.cat([out.indices.flatten(), torch.zeros(1, dtype=torch.int64)]).unique()
    close(torch.tensor(len(used) / config["codebook_size"]), data["train.usage"])


@pytest.mark.parity("discrete/openmagvit2_*", lambda config: "ch_mult" in config)
def test_open_magvit2_model(case: Any) -> None:
    config, data = case.config, case.tensors
    sizes = {name: config[name] for name in ("ch", "ch_mult", "num_res_blocks")}
    model = load_model(vistok.tokenizer("open_magvit2_256", **sizes, dim=config["z_channels"]), data)
    check_model(model, data)


@pytest.mark.parity("discrete/taming_vq_on_ibq_*", lambda config: True)
def test_taming_quantizer_and_decoder_on_the_ibq_model(path: Path, case: Any) -> None:
    config, data = case.config, case.tensors
    wanted = ("codebook_size", "embed_dim")
    models = [read(other) for other in sorted(path.parent.glob("ibq_*")) if "ch_mult" in read(other).config]
    (network,) = [m for m in models if all(m.config[name] == config[name] for name in wanted)]
    sizes = ibq_sizes(network.config) | {"beta": config["beta"]}
    model = load_model(vistok.tokenizer("taming_f16_1024", **sizes, legacy=config["legacy"]), network.tensors)
    quantized: Quantized = model.quantize(rows(network.tensors["h"]).flatten(1, 2))
    assert torch.equal(quantized.indices.flatten(), data["indices"].long())
    near(quantized.embeds.detach(), rows(data["z_q"]).flatten(1, 2))
    close(quantized.loss.detach(), data["loss_legacy"])
    with torch.no_grad():
        near(model.pixels(data["z_q"]), data["recon"])
