"""KARL: any subset of slots, per-image eps and budget, masked = dropped, verified errors, the authors' checkpoints."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import vistok
from vistok.tokenizers._allocation import error_search, learned_halting, mean_absolute_error, prefix, verified
from vistok.tokenizers.karl import EPSILONS, Karl

BASES: dict[str, dict[str, Any]] = {
    "vqgan": {"ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1, "decoder_num_res_blocks": 1, "z_channels": 8},
    "vae": {"ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1, "decoder_num_res_blocks": 1, "z_channels": 4},
    "pixels": {},
}


def build(base: str = "pixels", **changes: Any) -> Karl:
    """A tiny model that halts some slots of any image: the last bias is moved to the median logit."""
    sizes: dict[str, Any] = {
        "encoder_width": 32, "encoder_layers": 2, "encoder_heads": 2, "decoder_width": 24, "decoder_layers": 2,
        "decoder_heads": 2, "codebook_size": None, "patch": 4, "max_grid": 8, "max_latents": 24, "budget": 16,
        "trained_grid": [4, 4],
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Karl(base_tokenizer={"method": base, **BASES[base]}, **(sizes | changes)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
            logits = model.latents(images(2), 16, torch.zeros(2, dtype=torch.int64)).halt_logits
            head: Any = model.halting_mlp[2]
            head.bias.add_(1.0986 - logits.median())
    return model


def images(count: int = 3, height: int = 16, width: int = 16, seed: int = 0) -> Tensor:
    """From flat to noisy: [count, 3, height, width]."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(count, 3, height, width, generator=generator)
    return 0.5 + (noise - 0.5) * torch.linspace(0.1, 1, count)[:, None, None, None]


PUBLISHED = {
    "karl_tiny": (57_269_005, 111_784_592),
    "karl_small": (216_395_533, 270_911_120),
    "karl_base": (180_821_261, 235_336_848),
    "karl_semilarge": (417_935_117, 472_450_704),
    "karl_small_decoder_semilarge": (317_165_325, 371_680_912),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_named_models_have_their_published_sizes(name: str) -> None:
    with torch.device("meta"):
        model: Any = vistok.tokenizer(name)
    base = sum(parameter.numel() for parameter in model.base_tokenizer.parameters())
    total = sum(parameter.numel() for parameter in model.parameters())
    assert (total - base, total) == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "tensors"),
    [("karl_small", 391), ("karl_small_continuous", 390), ("karl_small_vae", 535), ("karl_small_vae_continuous", 534)],
)
def test_a_state_dict_has_as_many_tensors_as_the_authors(name: str, tensors: int) -> None:
    with torch.device("meta"):
        model: Any = vistok.tokenizer(name)
    assert len(model.state_dict()) == tensors


def test_the_authors_checkpoint_loads_its_average_without_the_training_networks(tmp_path: Path) -> None:
    model = build("vqgan", codebook_size=32)
    average = {**model.state_dict(), "gan_losses.0.discriminator.main.0.weight": torch.zeros(3)}
    path = tmp_path / "karl.pth"
    torch.save({"model": {"other": torch.zeros(1)}, "ema": average, "epoch": 3, "optimizer": {}}, path)
    settings_of: Any = model._hub_mixin_config
    loaded: Any = vistok.tokenizer("karl_small", checkpoint=path, **settings_of)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    torch.save({"ema": {**average, "surplus": torch.zeros(1)}}, path)
    with pytest.raises(ValueError, match="unexpected surplus"):
        vistok.tokenizer("karl_small", checkpoint=path, **settings_of)


def test_the_arguments_beside_the_weights_may_be_a_namespace(tmp_path: Path) -> None:
    model = build("pixels")
    path = tmp_path / "karl.pth"
    torch.save({"ema": model.state_dict(), "args": argparse.Namespace(lr=1.0)}, path)
    settings_of: Any = model._hub_mixin_config
    loaded: Any = vistok.tokenizer("karl_nano", checkpoint=path, **settings_of)
    assert torch.equal(loaded.latent_tokens, model.latent_tokens)


@pytest.mark.parametrize(
    ("eps", "used"),
    [(0.0, 0.005), (0.05, 0.05), (0.0500001, 0.06), (0.08, 0.09), (0.11, 0.12), (0.38, 0.38), (0.5, 0.38)],
)
def test_an_error_goes_to_the_smallest_bin_that_is_not_below_it(eps: float, used: float) -> None:
    model = build(epsilons=EPSILONS)
    assert EPSILONS[int(model.bins(eps, images(1)))] == used


@pytest.mark.parametrize("base", BASES)
def test_dropping_halted_slots_is_masking_them(base: str) -> None:
    model, pictures = build(base), images()
    with torch.no_grad():
        run = model.run(pictures, 16, model.bins(0.05, pictures), halting=True)
        tokens = model.encode(pictures, eps=0.05)
        assert tokens.lengths is not None and int(tokens.lengths.min()) > 0 and int(tokens.lengths.max()) < 16
        assert torch.equal(tokens.lengths, run.keep.sum(1))
        kept = tokens.trim()
        assert kept.embeds is not None and kept.source is not None
        dropped = model.decode_latents(kept.embeds, kept.source, kept.mask, run.grid)
        torch.testing.assert_close(dropped, run.decoded, rtol=0, atol=1e-4)
        images_of_dropped = model.base_tokenizer.pixels(dropped, run.grid).clamp(0, 1)
        assert torch.equal(model.decode(tokens), images_of_dropped)


def test_kept_slots_are_no_prefix_and_carry_their_places() -> None:
    model = build()
    with torch.no_grad():
        tokens = model.encode(images(), eps=0.05)
        renumbered = model.decode(tokens.replace(source=torch.arange(tokens.num_slots).expand(3, -1)))
    assert tokens.source is not None and tokens.scores is not None
    kept = tokens.source[0, : int(tokens.valid_lengths[0])]
    assert (kept.diff() > 0).all() and not torch.equal(kept, torch.arange(len(kept)))
    assert (tokens.scores[tokens.mask] >= 0.25).all()
    assert (renumbered - model.decode(tokens)).abs().max() > 1e-3


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("base", BASES)
def test_a_batch_of_unlike_images_is_each_of_them_alone(base: str, training: bool) -> None:
    model, pictures = build(base, codebook_size=None).train(training), images()
    bins = model.bins(torch.tensor([0.01, 0.05, 0.2]), pictures)
    together = model.run(pictures, 16, bins, halting=True)
    counts = together.keep.sum(1)
    assert len(set(counts.tolist())) > 1
    for row in range(3):
        alone = model.run(pictures[row : row + 1], 16, bins[row : row + 1], halting=True)
        assert torch.equal(alone.keep[0], together.keep[row])
        torch.testing.assert_close(alone.decoded[0], together.decoded[row], rtol=0, atol=1e-4)


def test_error_and_budget_may_differ_by_image() -> None:
    model, pictures = build(), images()
    eps, budget = torch.tensor([0.01, 0.1, 0.3]), torch.tensor([3, 16, 9])
    together = model.encode(pictures, eps=eps, budget=budget)
    assert (together.valid_lengths <= budget).all()
    for row in range(3):
        alone = model.encode(pictures[row : row + 1], eps=float(eps[row]), budget=int(budget[row]))
        one = together[row : row + 1].trim()
        assert torch.equal(alone.trim().source, one.source)  # type: ignore[arg-type]
        torch.testing.assert_close(alone.trim().embeds, one.embeds, rtol=0, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(kept=st.lists(st.booleans(), min_size=16, max_size=16))
def test_any_subset_decodes_and_no_token_at_all_too(kept: list[bool]) -> None:
    model = MODEL
    with torch.no_grad():
        tokens = model.encode(images(1), halting=False).keep(torch.tensor([kept]))
        back = model.decode(tokens)
    assert int(tokens.valid_lengths[0]) == sum(kept)
    assert back.shape == (1, 3, 16, 16) and back.isfinite().all()


MODEL = build()


@pytest.mark.parametrize("budget", [1, 24])
def test_the_smallest_and_the_largest_budget_work(budget: int) -> None:
    tokens = MODEL.encode(images(), budget=budget, halting=False)
    assert tokens.num_slots == budget and tokens.valid_lengths.tolist() == [budget] * 3
    assert MODEL.decode(tokens).isfinite().all()
    with pytest.raises(ValueError, match=r"expected a budget in 1\.\.24"):
        MODEL.encode(images(), budget=25)


def test_other_grids_work_and_are_called_untrained() -> None:
    tokens = MODEL.encode(images(2, 10, 29))
    assert tokens.spec.grid == (3, 8) and MODEL.decode(tokens).shape == (2, 3, 10, 29)
    assert not MODEL.is_trained_on(tokens.spec.grid) and MODEL.is_trained_on((4, 4))
    with pytest.raises(ValueError, match="at most 8x8 patches of 4 pixels, got 4x9"):
        MODEL.encode(images(1, 16, 36))


def test_the_latents_of_a_vae_are_drawn_on_request_and_repeatably() -> None:
    model, pictures = build("vae"), images()

    def drawn(seed: int) -> Tensor:
        generators = [torch.Generator().manual_seed(seed + row) for row in range(3)]
        tokens = model.encode(pictures, halting=False, sample=True, generator=generators)
        assert tokens.embeds is not None
        return tokens.embeds

    mean = model.encode(pictures, halting=False).embeds
    assert mean is not None
    assert torch.equal(drawn(0), drawn(0)) and not torch.equal(drawn(0), drawn(9)) and not torch.equal(drawn(0), mean)


@pytest.mark.parametrize("eps", [-0.1, float("nan"), torch.tensor([0.1, 0.1])])
def test_an_error_that_is_none_is_refused(eps: Any) -> None:
    with pytest.raises(ValueError, match="expected eps"):
        MODEL.encode(images(), eps=eps)


def test_a_verified_error_is_met_wherever_all_slots_meet_it() -> None:
    pictures = images(6)
    with torch.no_grad():
        full = learned_halting(MODEL, pictures, eps=0.0, halting=False)
        for eps in (0.02, 0.08, 0.15, 0.3):
            found = verified(MODEL, pictures, eps=eps)
            error = mean_absolute_error(MODEL.decode(found.tokens), pictures)
            torch.testing.assert_close(error, found.error)
            assert torch.equal(found.met, error <= eps)
            assert (found.met | (full.error > eps)).all()
            assert (found.encoder_passes >= 1).all() and torch.equal(found.encoder_passes, found.decoder_passes)
            once = learned_halting(MODEL, pictures, eps=eps)
            assert (found.encoder_passes[once.met] == 1).all()
            tokens = MODEL.encode(pictures, eps=eps, verify=True)
            assert torch.equal(tokens.valid_lengths, found.tokens.valid_lengths)


def test_verification_is_refused_with_what_it_would_ignore() -> None:
    for option in ({"halting": False}, {"calibrated": True}, {"sample": True}):
        with pytest.raises(ValueError, match="expected verify=True without"):
            MODEL.encode(images(), verify=True, **option)  # type: ignore[arg-type]


class Staircase:
    """A tokenizer whose error falls by one with each token, from the number that the image shows."""

    budget = 8

    def __init__(self) -> None:
        self.passes = 0

    def encode(self, pictures: Tensor, *, budget: Any = 8, halting: bool = False, **_: Any) -> Any:
        from vistok.tokens import TokenSpec, TokenTensor

        self.passes += 1
        lengths = torch.as_tensor(budget).expand(len(pictures)).clone()
        embeds = pictures[:, :1, 0, :1].expand(-1, 8, -1)
        return TokenTensor(spec=TokenSpec("stairs"), embeds=embeds, lengths=lengths)

    def decode(self, tokens: Any) -> Tensor:
        left = (tokens.embeds[:, 0, 0] - tokens.valid_lengths).clamp(min=0)
        return left[:, None, None, None].expand(-1, 3, 1, 1)


def shows(pictures: Tensor, _: Tensor) -> Tensor:
    return pictures[:, 0, 0, 0]


def test_the_error_search_finds_the_smallest_budget_by_bisection() -> None:
    model, numbers = Staircase(), torch.tensor([0.0, 1.0, 4.0, 8.0, 9.0, 30.0])
    pictures = numbers[:, None, None, None].expand(-1, 3, 1, 1)
    found = error_search(model, pictures, eps=2.0, target=shows)
    assert found.tokens.valid_lengths.tolist() == [1, 1, 2, 6, 7, 8]
    assert found.met.tolist() == [True] * 5 + [False]
    assert found.encoder_passes.max() <= 4 and int(found.encoder_passes[-1]) == 1


def test_a_prefix_is_the_first_tokens_of_one_pass() -> None:
    pictures = images(2)
    with torch.no_grad():
        found = prefix(MODEL, pictures, budget=torch.tensor([2, 5]), eps=1.0)
        every = MODEL.encode(pictures, halting=False)
    assert found.tokens.valid_lengths.tolist() == [2, 5] and found.met.all()
    assert torch.equal(found.tokens.embeds, every.embeds)  # type: ignore[arg-type]


def test_any_measure_can_be_the_target() -> None:
    pictures = images(4)

    def worst(decoded: Tensor, true: Tensor) -> Tensor:
        return (decoded - true).abs().amax((1, 2, 3))

    with torch.no_grad():
        found = verified(MODEL, pictures, eps=0.3, target=worst)
        torch.testing.assert_close(found.error, worst(MODEL.decode(found.tokens), pictures))


def test_a_calibration_is_saved_with_the_model_and_asks_for_less(tmp_path: Path) -> None:
    model, pictures = build(), images()
    with pytest.raises(ValueError, match="expected a calibrated model"):
        model.encode(pictures, eps=0.1, calibrated=True)
    model.set_calibration({0.005: 0.02, 0.05: 0.08, 0.1: 0.2})
    model.save_pretrained(tmp_path)
    loaded: Any = vistok.tokenizer("karl_nano", checkpoint=tmp_path).eval()  # type: ignore[attr-defined]
    assert loaded.calibration == {"0.005": 0.02, "0.05": 0.08, "0.1": 0.2}
    for eps, asked in ((0.1, 0.05), (0.5, 0.1), (0.001, 0.005)):
        left, right = loaded.encode(pictures, eps=eps, calibrated=True), model.encode(pictures, eps=asked)
        assert torch.equal(left.valid_lengths, right.valid_lengths)
    several = loaded.encode(pictures, eps=torch.tensor([0.1, 0.5, 0.001]), calibrated=True)
    same = model.encode(pictures, eps=torch.tensor([0.05, 0.1, 0.005]))
    assert torch.equal(several.valid_lengths, same.valid_lengths)


def test_settings_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="epsilons ascending"):
        build(epsilons=[0.2, 0.1])
    with pytest.raises(ValueError, match=r"budget in 1\.\.24"):
        build(budget=25)
    with pytest.raises(ValueError, match="expected one of vqgan, vae, pixels, got 'gan'"):
        Karl(base_tokenizer={"method": "gan"})
    with pytest.raises(ValueError, match="3 levels make patches of 4 pixels, got patch=8"):
        build("vqgan", patch=8)
    with pytest.raises(ValueError, match="heads that divide width=32, got heads=3"):
        build(encoder_heads=3)
