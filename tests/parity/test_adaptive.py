"""KARL and TiTok against the original authors' code: masks, counts and ids identical, numbers to their tolerance."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vistok.layers.gaussian import Gaussian
from vistok.tokenizers.karl import Karl, Latents
from vistok.tokenizers.titok import TiTok
from vistok.train.karl_losses import EpsilonSchedule, distillation_step

from .conftest import Case, read


def is_karl(kind: str) -> Any:
    return lambda config: config["method"] == "karl" and config["kind"] == kind


def weights_of(path: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    """The float32 tensors of all weight files of a case."""
    merged: dict[str, Tensor] = {}
    for name in config["weights"]:
        merged |= {key: value.float() for key, value in read(path.parent / name).tensors.items()}
    return merged


def karl(path: Path, config: dict[str, Any]) -> Karl:
    base, sizes = config["base"], dict(config["base_config"])
    scale = sizes.pop("scale")
    sizes.pop("embed_dim")
    if base == "vae":
        sizes.pop("n_embed")
        sizes["scale"] = scale
    model = Karl(
        base_tokenizer={"method": base, **sizes},
        **{f"{side}_{size}": config[f"{side}_{size}"] for side in ("encoder", "decoder") for size in SIZES},
        codebook_size=config["codebook_size"] if config["quantize_latent"] else None,
        latent_dim=config["latent_dim"],
        commitment=config["commitment"] or 0.25,
        patch=config["patch_size"],
        max_grid=config["max_grid_tokens"],
        max_latents=config["max_latent_tokens"],
        halt_threshold=config["halt_threshold"],
    )
    model.load_state_dict(model.rename_keys(weights_of(path, config)))
    return model.eval()


SIZES = ("width", "layers", "heads")


def pictures(case: Case) -> Tensor:
    images = case.tensors["image_u8"].float() / 255
    return images if images.ndim == 4 else images[None]


def close(actual: Tensor, expected: Tensor, atol: float) -> None:
    torch.testing.assert_close(actual, expected.reshape(actual.shape).to(actual.dtype), rtol=1e-4, atol=atol)


def close_in_units_of_its_spread(actual: Tensor, expected: Tensor) -> None:
    assert (actual - expected).abs().max() <= 1e-3 * expected.std()


@pytest.mark.parity("adaptive/*.case_*", is_karl("case"))
@torch.no_grad()
def test_karl_infers_as_the_original(case: Case, path: Path) -> None:
    config, data = case.config, case.tensors
    model, images = karl(path, config), pictures(case)
    bins = model.bins(config["eps"], images)
    close(torch.tensor(model.epsilons[int(bins)]), torch.tensor(config["eps_bin"]), 1e-7)
    close(model.rec_loss_embeddings[bins][:, None], data["eps_token_raw"], 0)
    noise = data.get("noise") if config["posterior"] == "sampled" else None
    for budget in config["budgets"]:
        part = {name.partition(".")[2]: value for name, value in data.items() if name.startswith(f"T{budget}.")}
        latents = model.latents(images, budget, bins, noise=noise)
        check_run(model, latents, part, images)
    check_base(model, images, data)


def check_run(model: Karl, latents: Latents, part: dict[str, Tensor], images: Tensor) -> None:
    keep = model.keeps(latents.halt_logits)
    close(latents.halt_logits, part["halt_logits"], 1e-3)
    close(torch.sigmoid(latents.halt_logits), part["halt_prob"], 1e-3)
    assert torch.equal(keep, part["keep_mask"].bool())
    assert torch.equal(keep.sum(1).int(), part["token_count"])
    close(latents.outputs, part["encoder_out_latents"], 1e-3)
    close(latents.values, part["latents_factorized"], 1e-3)
    embeds = latents.values
    if model.quantize is not None:
        embeds, indices = model.quantize(latents.values)[:2]
        assert torch.equal(indices, part["indices"].long())
        close(embeds, part["latents_quantized"], 1e-3)
    slots = torch.arange(keep.shape[1]).expand(keep.shape)
    masked = model.decode_latents(embeds, slots, keep, latents.grid)
    close(masked, part["decoder_out"], 2e-3)
    reconstruction = model.base_tokenizer.pixels(masked, latents.grid)
    close_in_units_of_its_spread(reconstruction, part["reconstruction"])
    close((reconstruction - images).abs().mean((1, 2, 3)), part["l1"], 1e-4)
    dropped = model.decode_latents(embeds[:, keep[0]], slots[:, keep[0]], None, latents.grid)
    close(dropped, part["decoder_out"], 2e-3)


def check_base(model: Karl, images: Tensor, data: dict[str, Tensor]) -> None:
    if "base_h" not in data:
        return
    base: Any = model.base_tokenizer
    features = base.features(images)
    close(features.latents, data["base_h"], 1e-3)
    assert torch.equal(features.target, data["base_indices"].long())
    joined = torch.cat([model.patch_embed(images), features.latents], 1).flatten(2).transpose(1, 2)
    close(joined, data["img_tokens"], 1e-3)
    codes = base.vqgan.codebook[features.target].transpose(1, 2).unflatten(2, features.latents.shape[2:])
    close_in_units_of_its_spread(base.vqgan.decoder(codes), data["base_reconstruction"])


@pytest.mark.parity("adaptive/*.case_*", is_karl("case"))
@torch.no_grad()
def test_karl_encodes_and_decodes_as_the_original(case: Case, path: Path) -> None:
    config, data = case.config, case.tensors
    if config["posterior"] == "sampled":
        pytest.skip("encode draws its own noise; the original's is put in by the test above")
    model, images = karl(path, config), pictures(case)
    for budget in config["budgets"]:
        tokens = model.encode(images, budget=budget, eps=config["eps"]).check().trim()
        keep = data[f"T{budget}.keep_mask"].bool()[0]
        assert tokens.source is not None
        assert torch.equal(tokens.source[0], keep.nonzero()[:, 0])
        if tokens.indices is not None:
            assert torch.equal(tokens.indices[0], data[f"T{budget}.indices"][0, keep].long())
        expected = data[f"T{budget}.reconstruction"].clamp(0, 1)
        assert (model.decode(tokens) - expected).abs().max() <= 1e-3 * max(1.0, float(expected.std()))


@pytest.mark.parity("adaptive/*.train_*", is_karl("train"))
def test_karl_trains_as_the_original(case: Case, path: Path) -> None:
    config, data = case.config, case.tensors
    model = karl(path, config).train()
    model.base_tokenizer.requires_grad_(not config["base_frozen"])
    schedule = EpsilonSchedule(model.epsilons)
    schedule.probability.copy_(data["prob_before"])
    images = struct_images(path, config)
    first, second = config["first_run_budget"], config["second_run_budget"]
    step = distillation_step(model, images, first, second, torch.tensor([config["eps"]]))
    schedule.update(step.error)
    close(schedule.probability, data["prob_after"], 1e-6)
    assert max(0, second - int(step.budgets)) == config["surplus_tokens"]
    for number, (run, terms) in enumerate(zip(step.runs, step.terms, strict=True), 1):
        close(run.halt_logits, data[f"run{number}.halt_logits"], 1e-3)
        close(run.decoded, data[f"run{number}.decoder_out"], 2e-3)
        if run.indices is not None:
            assert torch.equal(run.indices, data[f"run{number}.indices"].long())
        check_losses(terms, {name: value for name, value in data.items() if name.startswith(f"run{number}.log.")})
    torch.testing.assert_close(step.loss, data["total_loss"].reshape(()), rtol=1e-3, atol=1e-5)
    step.loss.backward()
    named = dict(model.named_parameters())
    for name, expected in data.items():
        if name.startswith("grad."):
            gradient = named[name.removeprefix("grad.")].grad
            assert gradient is not None
            torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    torch.testing.assert_close(norm, data["grad_norm_total"].reshape(()), rtol=1e-3, atol=0)


LOGGED = {
    "code_loss": "code",
    "nll_loss": "nll",
    "quantization_loss": "codebook",
    "latent_token_active_loss_bce": "keep",
    "latent_token_halt_loss_bce": "halt",
}


def check_losses(terms: dict[str, Tensor], logged: dict[str, Tensor]) -> None:
    assert logged
    for name, expected in logged.items():
        ours = next(terms[term] for label, term in LOGGED.items() if label in name)
        torch.testing.assert_close(ours, expected.reshape(()), rtol=1e-3, atol=1e-6)


def struct_images(path: Path, config: dict[str, Any]) -> Tensor:
    """The image that a training file names, out of a case of the same model that holds it."""
    for other in sorted(path.parent.glob("*.case_*")):
        case = read(other)
        if case.config["image"] == config["image"] and case.config["weights"] == config["weights"]:
            return pictures(case)
    raise FileNotFoundError(f"{path}: no case of the image {config['image']!r}")


def is_titok(config: dict[str, Any]) -> bool:
    return bool(config["method"] == "titok" and config["kind"] == "case")


def titok(path: Path, config: dict[str, Any]) -> TiTok:
    names = {"hidden_channels": "ch", "channel_mult": "ch_mult", "codebook_size": "n_embed"}
    names |= {"num_res_blocks": "num_res_blocks", "z_channels": "z_channels"}
    below = {names[name]: value for name, value in (config["pixel_decoder"] or {}).items() if name in names}
    model = TiTok(
        **{f"{side}_{size}": config[f"{side}_{size}"] for side in ("encoder", "decoder") for size in SIZES},
        latents=config["num_latent_tokens"],
        dim=config["token_size"],
        codebook_size=config["codebook_size"] if config["quantize_mode"] == "vq" else None,
        normalise=bool(config["l2_norm"]),
        legacy=config["is_legacy"],
        pixel_decoder=below,
        image_size=config["image_size"],
        patch=config["patch_size"],
    )
    model.load_state_dict(model.rename_keys(weights_of(path, config)))
    return model.eval()


@pytest.mark.parity("adaptive/titok_*.case*", is_titok)
@torch.no_grad()
def test_titok_is_the_original(case: Case, path: Path) -> None:
    config, data = case.config, case.tensors
    model, images = titok(path, config), pictures(case)
    moments = model.moments(images)
    close(moments, data["encoder_z"][:, :, 0].transpose(1, 2), 1e-3)
    tokens = model.encode(images).check()
    assert tokens.embeds is not None
    if tokens.indices is not None:
        assert torch.equal(tokens.indices, data["indices"][:, 0].long())
    close(tokens.embeds, data["z_quantized"][:, :, 0].transpose(1, 2), 1e-3)
    if "posterior_logvar" in data:
        close(Gaussian.from_moments(moments).logvar, data["posterior_logvar"][:, :, 0].transpose(1, 2), 1e-3)
    decoded = model.predict(tokens.embeds)
    if "decoder_out" in data:
        close(decoded, data["decoder_out"], 2e-3)
    close_in_units_of_its_spread(model.pixels(decoded), data["reconstruction"])
    assert torch.equal(model.decode(tokens), model.pixels(decoded).clamp(0, 1))
