"""What authors published becomes a folder of ours, with the same ids; the preset is found by the tensors."""

import json
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vistok
from vistok.cli._recognise import _most_specific, recognise
from vistok.cli.main import main
from vistok.config import deep_merge
from vistok.weights import read_tensors, stored_settings

Tensors = dict[str, Tensor]


def titok(state: Tensors) -> Any:
    renamed = {name.replace(".upsample.conv.", ".upsample_conv."): value for name, value in state.items()}
    return {
        name.replace(".mid.block_1.", ".mid.0.").replace(".mid.block_2.", ".mid.1."): value
        for name, value in renamed.items()
    }


def karl(state: Tensors) -> Any:
    return {"ema": {**state, "gan_losses.discriminator.weight": torch.zeros(2)}, "epoch": 3}


def inside(prefix: str) -> Callable[[Tensors], Any]:
    def whole(state: Tensors) -> Any:
        return {f"{prefix}{name}": value for name, value in state.items()} | {"lm_head.weight": torch.zeros(4, 4)}

    return whole


def unitok(state: Tensors) -> Any:
    theirs = {
        name.replace("quantize.codebooks.", "quantizer.codebooks.").replace(
            "embedding.weight", "codebook.weight"
        ): value
        for name, value in state.items()
    }
    return {"trainer": {"unitok": theirs | {"logit_scale": torch.tensor(2.6)}}}


def llamagen(state: Tensors) -> Any:
    names = {
        "encoder.down.": "encoder.conv_blocks.", "decoder.up.": "decoder.conv_blocks.", ".block.": ".res.",
        ".mid.block_1.": ".mid.0.", ".mid.attn_1.": ".mid.1.", ".mid.block_2.": ".mid.2.",
        "quantize.embedding": "quantize.embedding.weight",
    }  # fmt: skip
    theirs = dict(state)
    for ours, name in names.items():
        theirs = {key.replace(ours, name): value for key, value in theirs.items()}
    return {"model": theirs | {"quantize.codebook_used": torch.zeros(()).expand(65536)}}


LAYOUTS: dict[str, Callable[[Tensors], Any]] = {
    "titok_s128": titok,
    "karl_small": karl,
    "maskgit_vq": titok,
    "chameleon_encoder": inside("model.vqmodel."),
    "janus": inside("gen_vision_model."),
    "emu3": inside("model.vqmodel."),
    "unitok": unitok,
    "llamagen_vq16": llamagen,
}


def tiny(name: str) -> dict[str, Any]:
    """Settings of the preset's `tiny:` block that are not the preset's own."""
    preset = vistok.info("tokenizer", name)
    return deep_merge(preset.settings, preset.tiny)


def ids(model: Any, *, seed: int = 1) -> Tensor:
    height, width = model.spec.image_size or (24, 40)
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        found: Tensor = model.eval().encode(images).indices
    return found


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_converted_checkpoint_gives_the_ids_of_the_authors_file(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    original: Any = vistok.tokenizer(name, **tiny(name))
    torch.save(LAYOUTS[name](original.state_dict()), tmp_path / "official.pth")
    out = tmp_path / "out"
    settings = json.dumps(tiny(name))
    assert main(["convert", str(tmp_path / "official.pth"), str(out), "--as", name, "--settings", settings]) == 0
    assert {"model.safetensors", "config.json"} <= {path.name for path in out.iterdir()}
    loaded: Any = vistok.tokenizer(name, checkpoint=out)
    assert torch.equal(ids(loaded), ids(original))
    again: Any = type(original).from_pretrained(out)
    assert torch.equal(ids(again), ids(original))
    assert read_tensors(out / "model.safetensors").keys() == original.state_dict().keys()


def test_a_diffusers_folder_is_converted_with_the_sizes_that_its_config_says(tmp_path: Path) -> None:
    from diffusers.models.autoencoders.vq_model import VQModel

    torch.manual_seed(0)
    theirs = VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 64), latent_channels=8, num_vq_embeddings=16, vq_embed_dim=4,
        mid_block_add_attention=False,
    )  # fmt: skip
    theirs.save_pretrained(tmp_path / "vqvae")
    facts = tmp_path / "facts.json"
    assert (
        main(["convert", str(tmp_path / "vqvae"), str(tmp_path / "out"), "--as", "amused", "--json", str(facts)]) == 0
    )
    assert stored_settings(tmp_path / "out")["block_out_channels"] == [32, 64]
    loaded: Any = vistok.tokenizer("amused", checkpoint=tmp_path / "out")
    assert loaded.codebook_sizes == (16,)
    assert torch.equal(ids(loaded), ids(vistok.tokenizer("amused", checkpoint=tmp_path / "vqvae")))
    values = sum(value.numel() for value in theirs.state_dict().values())
    assert json.loads(facts.read_text()) == {
        "preset": "amused", "out": str(tmp_path / "out"), "tensors": len(theirs.state_dict()), "values": values,
    }  # fmt: skip


def test_scripts_are_converted_with_trust_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    original: Any = vistok.tokenizer("cosmos_di16", **tiny("cosmos_di16"))
    halves = {
        "encoder": (nn.Sequential(OrderedDict(encoder=original.encoder, quant_conv=original.quant_conv)), (1, 3, 8, 8)),
        "decoder": (
            nn.Sequential(OrderedDict(post_quant_conv=original.post_quant_conv, decoder=original.decoder)),
            (1, 6, 2, 2),
        ),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for half, (network, shape) in halves.items():
            torch.jit.save(
                torch.jit.trace(network.eval(), torch.rand(shape), check_trace=False), tmp_path / f"{half}.jit"
            )
    command = ["convert", str(tmp_path), str(tmp_path / "out"), "--as", "cosmos_di16"]
    command += ["--settings", json.dumps(tiny("cosmos_di16"))]
    assert main(command) == 1
    assert "pass trust=True" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main([*command, "--trust"]) == 0
    assert torch.equal(ids(vistok.tokenizer("cosmos_di16", checkpoint=tmp_path / "out")), ids(original))


@pytest.mark.slow
def test_the_preset_is_found_by_the_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original: Any = vistok.tokenizer("vq_nano", pretrained=True)
    torch.save(original.state_dict(), tmp_path / "some.pt")
    assert main(["convert", str(tmp_path / "some.pt"), str(tmp_path / "out")]) == 0
    assert f"{tmp_path / 'out'}: vq_nano, {len(original.state_dict())} tensors" in capsys.readouterr().out
    assert torch.equal(ids(vistok.tokenizer("vq_nano", checkpoint=tmp_path / "out")), ids(original))


def full_size(name: str, path: Path, layout: Callable[[Tensors], Any]) -> Path:
    """A file of a preset's full size: every tensor is one number, repeated, so that it takes a few kilobytes."""
    with torch.device("meta"):
        model: Any = vistok.tokenizer(name)
    torch.save(layout({n: torch.zeros(()).expand(value.shape) for n, value in model.state_dict().items()}), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "titok_s128",
        "titok_bl128_vae_c16",
        "maskgit_vq",
        "chameleon_encoder",
        "janus",
        "emu3",
        "unitok",
        "llamagen_vq16",
    ],
)
def test_published_checkpoints_are_told_apart(name: str, tmp_path: Path) -> None:
    path = full_size(name, tmp_path / "official.pth", LAYOUTS.get(name, titok))
    assert recognise(str(path)) == name


def test_a_preset_for_any_model_of_a_method_gives_way_to_one_of_its_own() -> None:
    assert _most_specific(["diffusers_vae", "sd3_vae"]) == ["sd3_vae"]
    assert _most_specific(["diffusers_vae"]) == ["diffusers_vae"]
    assert _most_specific(["sd3_vae", "janus", "sdxl_vae"]) == ["sd3_vae", "janus", "sdxl_vae"]


@pytest.mark.slow
def test_a_checkpoint_that_fits_several_presets_or_none_says_what_to_give(tmp_path: Path) -> None:
    original: Any = vistok.tokenizer("vq_nano", pretrained=True)
    state = original.state_dict()
    missing = next(iter(state))
    torch.save({name: value for name, value in state.items() if name != missing}, tmp_path / "less.pt")
    with pytest.raises(ValueError, match=rf"closest is vq_nano, with 1 differences: missing {missing}.*--as PRESET"):
        recognise(str(tmp_path / "less.pt"))
    torch.save({"step": 3}, tmp_path / "none.pt")
    with pytest.raises(ValueError, match=r"none.pt: expected a mapping of tensors, found none"):
        recognise(str(tmp_path / "none.pt"))
    vistok.register("tokenizer/vq_nano_again")(type(original))
    try:
        torch.save(state, tmp_path / "some.pt")
        settings = stored_settings("embedded:vq_nano")
        with pytest.raises(ValueError, match=r"fits the networks of .*vq_nano.*vq_nano_again alike; say which"):
            recognise(str(tmp_path / "some.pt"), settings=settings)
    finally:
        vistok.registry._methods.pop(("tokenizer", "vq_nano_again"))


def test_nothing_is_overwritten_and_a_failure_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    (tmp_path / "there").mkdir()
    assert main(["convert", str(tmp_path / "other.pt"), str(tmp_path / "there"), "--as", "vq_nano"]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "other.pt"), str(tmp_path / "out"), "--as", "vq_nano"]) == 1
    assert "does not fit Autoencoder: missing" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "other.pt"), str(tmp_path / "out"), "--as", "vq_nan"]) == 1
    assert "no tokenizer 'vq_nan'; did you mean vq_nano" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.pt", "there"]
