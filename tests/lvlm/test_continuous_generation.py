"""Images as continuous tokens: rows of guidance, scales that count, rounds on one cache that equal one reading."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

import vistok
from vistok.config import deep_merge
from vistok.layers.flow_sampler import Guidance
from vistok.lvlm.continuous_generation import ContinuousGenerator, ImageHead
from vistok.tokenizers.mingtok import MingTok
from vistok.weights import load_weights

PRESET = vistok.info("tokenizer", "mingtok")
TINY: dict[str, Any] = deep_merge({**PRESET.settings, "preprocess": None}, PRESET.tiny)
WORDS, HIDDEN, GRID = 50, 32, (2, 3)


def language_model(family: str) -> Any:
    if family == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, n_embd=HIDDEN, n_layer=2, n_head=2, n_positions=64))
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, hidden_size=HIDDEN, intermediate_size=48, **sizes))


def built(family: str) -> ContinuousGenerator:
    torch.manual_seed(0)
    tokenizer = MingTok(**TINY)
    head = ImageHead(tokenizer.semantic_dim, HIDDEN, tokenizer.dim, width=24, depth=2)
    generator = ContinuousGenerator(language_model(family), tokenizer, head).eval()
    with torch.no_grad():  # the head starts with velocities of zero
        for parameter in generator.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return generator


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> ContinuousGenerator:
    return built(request.param)


def words(*shape: int, seed: int) -> Tensor:
    return torch.randint(WORDS, shape, generator=torch.Generator().manual_seed(seed))


def noise(model: ContinuousGenerator, batch: int = 2, seed: int = 5) -> Tensor:
    cells = GRID[0] * GRID[1]
    return torch.randn(batch, cells, model.tokenizer.dim, generator=torch.Generator().manual_seed(seed))


def turn(model: ContinuousGenerator, seed: int, batch: int = 2) -> list[Any]:
    parts = (words(batch, 1, seed=seed), words(batch, 5, seed=seed + 1), words(batch, 2, seed=seed + 2))
    return [model.frame(parts[0]), model.text(parts[1]), model.frame(parts[2])]


SCALES = Guidance(text=2.5, image=1.4)
FAST = {"steps": 3}


def test_a_second_round_on_the_kept_cache_equals_reading_everything_again(model: ContinuousGenerator) -> None:
    kept = model.dialogue()
    first = kept.make_image(turn(model, 0), GRID, guidance=SCALES, noise=noise(model), **FAST)
    end = model.frame(words(2, 1, seed=9))
    kept.read(end)
    second = kept.make_image(turn(model, 20), GRID, guidance=SCALES, noise=noise(model, seed=6), **FAST)

    again = model.dialogue()
    again.read(*turn(model, 0))
    again.read(model.image(first.semantic)._replace(kind="made"), end)
    repeated = again.make_image(turn(model, 20), GRID, guidance=SCALES, noise=noise(model, seed=6), **FAST)
    assert first.latents.embeds is not None and second.latents.embeds is not None
    torch.testing.assert_close(second.latents.embeds, repeated.latents.embeds, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(second.semantic.embeds, repeated.semantic.embeds, rtol=1e-4, atol=1e-4)
    assert kept.length == again.length == 2 * (8 + 6) + 1
    torch.testing.assert_close(kept.read(end), again.read(end), rtol=1e-4, atol=1e-4)


SIZES: dict[str, Any] = {
    **{"vocab_size": WORDS, "hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
SCALED: dict[str, Callable[[], Any]] = {
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=8.0, embedding_multiplier=3.0)),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.25)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=0.1)),
}


@pytest.mark.parametrize("family", SCALED)
def test_the_logits_are_those_of_the_whole_model(family: str) -> None:
    torch.manual_seed(0)
    lm, tokenizer = SCALED[family]().eval(), MingTok(**TINY)
    head = ImageHead(tokenizer.semantic_dim, HIDDEN, tokenizer.dim, width=24, depth=2)
    generator, ids = ContinuousGenerator(lm, tokenizer, head).eval(), words(2, 7, seed=0)
    dialogue = generator.dialogue()
    dialogue.read(generator.frame(ids[:, :3]))
    with torch.no_grad():
        expected = lm(input_ids=ids).logits[:, -1]
        plain = lm.get_output_embeddings()(lm.base_model(input_ids=ids).last_hidden_state[:, -1])
    torch.testing.assert_close(dialogue.read(generator.text(ids[:, 3:])), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain, expected, rtol=1e-2, atol=1e-3)


def test_what_was_made_is_what_the_tokenizer_makes_of_the_latents(model: ContinuousGenerator) -> None:
    made = model.dialogue().make_image(turn(model, 0), GRID, guidance=SCALES, noise=noise(model), **FAST)
    tokens = model.tokenizer.semantic(made.latents.check())
    assert made.semantic.check().spec == tokens.spec
    torch.testing.assert_close(made.semantic.embeds, tokens.embeds, rtol=0, atol=1e-5)
    with torch.no_grad():
        assert model.tokenizer.decode(made.semantic).shape == (2, 3, 16, 24)


def test_the_scales_of_the_caller_count(model: ContinuousGenerator) -> None:
    def made(guidance: Guidance | None, **options: Any) -> Tensor:
        dialogue = model.dialogue()
        dialogue.read(model.image(model.tokenizer.semantic(first.latents)))
        turned = [model.image(model.tokenizer.semantic(first.latents)), *turn(model, 0)]
        image = dialogue.make_image(turned, GRID, guidance=guidance, noise=noise(model), **{**FAST, **options})
        assert image.latents.embeds is not None
        return image.latents.embeds

    first = model.dialogue().make_image(turn(model, 3), GRID, noise=noise(model), **FAST)
    alone = made(None)
    torch.testing.assert_close(made(Guidance(1.0, 1.0)), alone, rtol=1e-4, atol=1e-4)
    tried = [alone] + [made(Guidance(*scales)) for scales in ((3.0, 1.0), (1.0, 3.0), (3.0, 1.1), (5.0, 1.1))]
    tried += [made(Guidance(5.0, 1.1, renormalize=True)), made(Guidance(3.0, 1.1), time_shift=2.0)]
    for i, one in enumerate(tried):
        assert all((one - other).abs().max() > 1e-3 for other in tried[:i])


def test_a_row_without_the_turn_is_the_model_that_never_read_it() -> None:
    """The first latent of a guided image, recomputed from plain passes whose hidden tokens are cut out."""
    model = built("llama").double()
    parts = turn(model, 0, batch=1)
    picture = model.image(model.dialogue().make_image(parts, GRID, noise=noise(model, 1), **FAST).semantic)
    whole = [parts[0], picture, parts[1], parts[2]]
    dialogue = model.dialogue()
    begin = noise(model, 1).double()
    made = dialogue.make_image(whole, GRID, guidance=SCALES, noise=begin, **FAST)

    lengths = [segment.embeds.shape[1] for segment in whole]
    positions = torch.arange(sum(lengths)).split(lengths)

    def condition(*kept: int) -> Tensor:
        out = model.language_model.base_model(
            inputs_embeds=torch.cat([whole[i].embeds for i in kept], 1),
            position_ids=torch.cat([positions[i] for i in kept])[None],
        )
        return model.head.vis_head(out.last_hidden_state[:, -1])

    with torch.no_grad():
        rows = torch.stack([condition(0, 1, 2, 3), condition(0, 3), condition(0, 1, 3)])
        x = begin[:, 0]
        for step in range(3):
            t = torch.tensor([1 - step / 3])
            with_all, without, images = (model.head.diffloss(x, t, row).float() for row in rows)
            x = x + (without + 1.4 * (images - without) + 2.5 * (with_all - images)) / 3
    assert made.latents.embeds is not None
    torch.testing.assert_close(made.latents.embeds[:, 0], x, rtol=1e-4, atol=1e-4)


def test_a_row_that_sees_only_the_frame_is_finite_and_does_not_depend_on_the_turn(model: ContinuousGenerator) -> None:
    def hidden(seed: int, picture: bool) -> Tensor:
        """Scales of zero leave the row without the turn alone."""
        seen = [model.image(model.tokenizer.semantic(first.latents.replace(embeds=noise(model, seed=seed))))]
        said = [*seen * picture, model.text(words(2, 4, seed=seed)), model.frame(words(2, 1, seed=2))]
        dialogue = model.dialogue()
        made = dialogue.make_image(said, GRID, guidance=Guidance(0.0, 0.0), noise=noise(model), **FAST)
        assert dialogue.read(model.frame(words(2, 1, seed=2))).isfinite().all()
        assert made.latents.embeds is not None and bool(made.latents.embeds.isfinite().all())
        return made.latents.embeds

    first = model.dialogue().make_image(turn(model, 3), GRID, noise=noise(model), **FAST)
    for picture in (False, True):
        torch.testing.assert_close(hidden(1, picture), hidden(7, picture), rtol=1e-5, atol=1e-5)


def test_a_turn_whose_last_token_guidance_would_see_is_refused(model: ContinuousGenerator) -> None:
    dialogue = model.dialogue()
    picture = model.image(model.dialogue().make_image(turn(model, 3), GRID, noise=noise(model), **FAST).semantic)
    said = model.text(words(2, 4, seed=1))
    nothing = model.frame(words(2, 0, seed=1))
    for end in ([said], [picture], [said, nothing]):
        with pytest.raises(ValueError, match="expected a turn that ends with a frame"):
            dialogue.make_image([*turn(model, 0), *end], GRID, guidance=SCALES, **FAST)
    assert dialogue.length == 0
    dialogue.make_image([said], GRID, noise=noise(model), **FAST)


def test_a_refused_image_or_reading_leaves_the_context_as_it_was(model: ContinuousGenerator) -> None:
    dialogue = model.dialogue()
    dialogue.read(*turn(model, 0))
    odd = [model.frame(words(2, 1, seed=1)), model.frame(words(1, 1, seed=1))]
    for said, options in (
        (turn(model, 3), {"noise": noise(model)[:, 1:]}),
        (turn(model, 3), {"steps": 0}),
        (turn(model, 3), {"time_shift": 0.0}),
        (odd, {}),
    ):
        with pytest.raises(ValueError, match="expected"):
            dialogue.make_image(said, GRID, guidance=SCALES, **options)
        assert dialogue.length == 8
    with pytest.raises(ValueError, match="expected 2 items as before, got 1"):
        dialogue.read(*odd)
    assert dialogue.length == 8


def test_items_of_a_batch_do_not_depend_on_each_other(model: ContinuousGenerator) -> None:
    both = model.dialogue().make_image(turn(model, 0), GRID, guidance=SCALES, noise=noise(model), **FAST)
    for row in range(2):
        parts = [part._replace(embeds=part.embeds[row : row + 1]) for part in turn(model, 0)]
        one = model.dialogue().make_image(parts, GRID, guidance=SCALES, noise=noise(model)[row : row + 1], **FAST)
        assert one.latents.embeds is not None and both.latents.embeds is not None
        torch.testing.assert_close(one.latents.embeds[0], both.latents.embeds[row], rtol=1e-4, atol=1e-4)


def test_temperature_scales_the_drawn_noise(model: ContinuousGenerator) -> None:
    def made(**options: Any) -> Tensor:
        dialogue = model.dialogue()
        image = dialogue.make_image(turn(model, 0), GRID, **FAST, **options)
        assert image.latents.embeds is not None
        return image.latents.embeds

    drawn = made(generator=torch.Generator().manual_seed(5), temperature=0.5)
    torch.testing.assert_close(drawn, made(noise=0.5 * noise(model)))


def test_training_reaches_every_part_and_predicts_each_token_from_those_before(model: ContinuousGenerator) -> None:
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latents = model.tokenizer.encode(images)
    context = turn(model, 0)

    def loss(tokens: Any, weights: Tensor | None = None) -> Tensor:
        return model.flow_loss(context, tokens, weights=weights, generator=torch.Generator().manual_seed(3))

    model.zero_grad()
    loss(latents).backward()
    parts = {"head": model.head, "language model": model.language_model.base_model}
    parts["semantic decoder"] = model.tokenizer.semantic_decoder
    for name, part in parts.items():
        reached = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in part.parameters()]
        assert sum(reached) >= len(reached) - 1, name  # GPT-2's table of words is not used: embeddings come in
    assert latents.embeds is not None
    changed = latents.replace(embeds=latents.embeds + torch.eye(6)[:, 4:5] * 3)
    until = (torch.arange(6) < 4).float().expand(2, -1)
    torch.testing.assert_close(loss(changed, until), loss(latents, until))
    assert not torch.allclose(loss(changed), loss(latents))
    with pytest.raises(ValueError, match="at least one token before the image"):
        model.flow_loss([], latents)


def test_training_takes_semantic_tokens_that_were_made_before(model: ContinuousGenerator) -> None:
    with torch.no_grad():
        latents = model.tokenizer.encode(torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)))
        semantic = model.tokenizer.semantic(latents)

        def loss(given: Any) -> Tensor:
            draw = torch.Generator().manual_seed(3)
            return model.flow_loss(turn(model, 0), latents, semantic=given, generator=draw)

        torch.testing.assert_close(loss(semantic), loss(None))
        assert not torch.allclose(loss(semantic.replace(embeds=semantic.embeds + 1)), loss(None))


def test_items_that_are_not_told_learn_what_guidance_compares_with(model: ContinuousGenerator) -> None:
    with torch.no_grad():
        latents = model.tokenizer.encode(torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)))
    given: list[Tensor] = []

    def remember(module: Any, arguments: Any, output: Tensor) -> None:
        given.append(output.detach())

    hook = model.head.vis_head.register_forward_hook(remember)
    try:
        model.flow_loss(turn(model, 0), latents, told=torch.tensor([True, False]))
        model.flow_loss(turn(model, 0), latents)
        model.dialogue().make_image(turn(model, 0), GRID, guidance=Guidance(text=2.0), noise=noise(model), **FAST)
    finally:
        hook.remove()
    half_told, all_told, (with_text, without) = given[0], given[1], given[2].unflatten(0, (2, 2))
    torch.testing.assert_close(half_told[0], all_told[0])
    torch.testing.assert_close(half_told[0, 0], with_text[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(half_told[1, 0], without[1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(half_told[1, 0], all_told[1, 0], atol=1e-3)


def test_the_head_loads_out_of_the_authors_whole_file(model: ContinuousGenerator, tmp_path: Any) -> None:
    state = model.head.state_dict()
    whole = {("" if name.startswith("linear_proj") else "model.") + name: value for name, value in state.items()}
    whole |= {"vision.sem_to_pix.bias": torch.zeros(1), "model.model.norm.weight": torch.zeros(2)}
    save_file({name: value.clone() for name, value in whole.items()}, tmp_path / "ming.safetensors")
    head = ImageHead(model.tokenizer.semantic_dim, HIDDEN, model.tokenizer.dim, width=24, depth=2)
    load_weights(head, tmp_path / "ming.safetensors")
    assert all(torch.equal(value, state[name]) for name, value in head.state_dict().items())


def test_what_does_not_fit_is_refused(model: ContinuousGenerator) -> None:
    with pytest.raises(ValueError, match="at least one token to go on from"):
        model.dialogue().make_image([], GRID)
    with pytest.raises(ValueError, match=r"expected noise \[2, 6, 8\], got \[2, 5, 8\]"):
        model.dialogue().make_image(turn(model, 0), GRID, noise=noise(model)[:, 1:])
    with pytest.raises(ValueError, match="at least 1 x 1"):
        model.dialogue().make_image(turn(model, 0), (0, 3))
    dialogue = model.dialogue()
    dialogue.read(model.text(words(2, 3, seed=0)))
    with pytest.raises(ValueError, match="expected 2 items as before, got 1"):
        dialogue.read(model.text(words(1, 3, seed=0)))
    with pytest.raises(ValueError, match="semantic tokens"):
        model.image(model.tokenizer.encode(torch.rand(1, 3, 16, 16)))
    with pytest.raises(ValueError, match="channels"):
        ContinuousGenerator(model.language_model, model.tokenizer, ImageHead(9, HIDDEN, 8, width=8, depth=1))
