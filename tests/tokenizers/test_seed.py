"""SEED: causal ids, both heads, frozen towers of three libraries, the authors' checkpoints, images by unCLIP."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vistok
from vistok.config import deep_merge
from vistok.tokenizers.seed import Seed
from vistok.tokens import TokenTensor

MICRO: dict[str, Any] = {
    "tower": {
        "method": "transformers",
        "weights": "embedded:micro_lvlm",
        "prefix": "vision_tower.",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    },
    "image_size": 96,
}
SMALL_CLIP: dict[str, Any] = {
    "method": "transformers",
    "settings": {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 8,
    },
}  # fmt: skip


def model_of(name: str = "seed", **settings: Any) -> Any:
    """Tiny, with a small tower of transformers in place of timm's, so that most tests need not import timm."""
    preset = vistok.info("tokenizer", name)
    torch.manual_seed(0)
    return Seed(**deep_merge(deep_merge(preset.settings, preset.tiny), {"tower": SMALL_CLIP, **settings})).eval()


def pictures(size: int = 16, batch: int = 2, seed: int = 1) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_ids_never_depend_on_later_queries() -> None:
    model = model_of(queries=9)
    before = model.encode(pictures())
    for place in (1, 5, 8):
        kept = model.query_tokens[:, place].clone()
        model.query_tokens[:, place] = torch.randn(kept.shape, generator=torch.Generator().manual_seed(place))
        after = model.encode(pictures())
        model.query_tokens[:, place] = kept
        assert torch.equal(before.indices[:, :place], after.indices[:, :place])
        assert torch.equal(before.embeds[:, :place], after.embeds[:, :place])
        assert not torch.equal(before.indices[:, place:], after.indices[:, place:])
    assert before.spec.order == "causal-1d"


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({}, (2, 20)),
        ({"head": "qformer", "reverse_tokens": 1}, (2, 20)),
        ({"head": "qformer", "reverse_tokens": 7, "embedding_dim": 12}, (2, 7, 12)),
    ],
    ids=["mlp", "qformer", "seed_1"],
)
@torch.no_grad()
def test_each_head_makes_its_embedding_of_ids_alone(settings: dict[str, Any], shape: tuple[int, ...]) -> None:
    model = model_of(**settings)
    tokens = model.encode(pictures())
    embedding = model.decode_embedding(tokens)
    assert embedding.shape == shape
    assert torch.equal(model.decode_embedding(tokens.replace(embeds=None)), embedding)
    other = tokens.replace(embeds=None, indices=tokens.indices.flip(1))
    assert not torch.equal(model.decode_embedding(other), embedding)
    with pytest.raises(ValueError, match="all 4 tokens"):
        model.decode_embedding(TokenTensor(spec=model.spec, indices=tokens.indices[:, :3]))
    with pytest.raises(ValueError, match="all 4 tokens"):
        model.decode_embedding(tokens.replace(lengths=torch.tensor([4, 3])))


def test_a_stage_two_step_trains_codes_and_decoders_of_a_frozen_encoder() -> None:
    model = model_of().train()
    for part in (model.ln_vision, model.Qformer, model.query_tokens):
        part.requires_grad_(False)
    made = model(pictures())
    assert not made.target.requires_grad
    (made.embedding.square().mean() + made.queries.square().mean() + made.quantized.loss).backward()
    trained = {name.partition(".")[0] for name, value in model.named_parameters() if value.grad is not None}
    assert trained == {
        "encode_task_layer", "quantizer", "decode_task_layer", "pos_embed", "pos_embed_image", "blocks", "blocks_image",
        "image_down", "distill_image_proj",
    }  # fmt: skip


def test_the_tower_stays_frozen_in_training() -> None:
    settings = {**SMALL_CLIP["settings"], "attention_dropout": 0.5}
    model = model_of(tower={**SMALL_CLIP, "settings": settings}).train()
    assert not any(module.training for module in model.visual_encoder.modules())
    assert torch.equal(model.visual_encoder(pictures()), model.visual_encoder(pictures()))
    assert not any(parameter.requires_grad for parameter in model.visual_encoder.parameters())
    assert model.Qformer.training


def test_the_tower_gets_no_gradient_even_where_all_parameters_are_told_to_train() -> None:
    model = model_of().train().requires_grad_(True)
    model.encode(pictures()).embeds.sum().backward()
    assert all(parameter.grad is None for parameter in model.visual_encoder.parameters())
    assert model.ln_vision.weight.grad is not None


def test_ln_vision_works_in_float32_whatever_the_dtype() -> None:
    model = model_of()
    tokens = torch.randn(2, 5, 16) * 1e3 + 3e4
    exact = model.normalised(tokens.bfloat16().float())
    halved = model.to(torch.bfloat16).normalised(tokens.bfloat16())
    assert halved.dtype == torch.bfloat16 and torch.equal(halved, exact.bfloat16())


@torch.no_grad()
def test_legacy_half_finds_the_code_that_is_nearest_in_float16() -> None:
    quantizer = {"method": "vq_learned", "dim": 8, "codebook_size": 512, "metric": "l2"}
    model = model_of(quantizer=quantizer)
    model.quantizer.embedding.normal_(generator=torch.Generator().manual_seed(0))
    z = model.encode_task_layer(model.causal_queries(model.features(pictures(batch=9))))
    model.encode_task_layer[2].weight.mul_(1 / z.std())
    z = model.encode_task_layer(model.causal_queries(model.features(pictures(batch=9))))
    exact = model.encode(pictures(batch=9))
    assert torch.equal(exact.indices, torch.cdist(z, model.quantizer.codebook).argmin(-1))
    model.legacy_half = True
    tokens = model.encode(pictures(batch=9)).check()
    a, b = z.half(), model.quantizer.codebook.half()
    distances = (a**2).sum(-1, keepdim=True) + (b**2).sum(-1) - 2 * a @ b.T
    assert torch.equal(tokens.indices, distances.argmin(-1))
    assert torch.equal(tokens.embeds, model.quantizer.lookup(tokens.indices))
    assert distances.dtype == torch.float16


def test_what_it_cannot_do_is_said_with_the_remedy() -> None:
    model = model_of()
    with torch.no_grad():
        tokens = model.encode(pictures())
    with pytest.raises(NotImplementedError, match=r"attach\(pipeline\).*decode_embedding"):
        model.decode(tokens)
    with pytest.raises(ValueError, match="makes 4 tokens always"):
        model.encode(pictures(), budget=2)
    with pytest.raises(ValueError, match="16x16 pixels, got 24x24; use model.preprocess"):
        model.encode(pictures(24))
    with pytest.raises(ValueError, match="head to be one of mlp, qformer, got 'cnn'"):
        model_of(head="cnn")
    with pytest.raises(ValueError, match="StableDiffusionPipeline as prompt_embeds"):
        model_of("seed_1").attach("nowhere")
    assert model.preprocess(torch.rand(3, 20, 40)).shape == (3, 16, 16)


def authors_names(model: Seed) -> dict[str, Tensor]:
    """A state dict as the authors' file has it: position ids beside the weights, the tower without our wrapper."""
    theirs = {
        name.replace("visual_encoder.net.", "visual_encoder.").replace(
            "quantizer.embedding", "quantize.embedding.weight"
        ): value
        for name, value in model.state_dict().items()
    }
    for part in ("Qformer", "Reverse_Qformer"):
        if any(name.startswith(part) for name in theirs):
            theirs[f"{part}.bert.embeddings.position_ids"] = torch.arange(512)[None]
    return theirs


def load(checkpoint: Path, name: str = "seed") -> Any:
    return vistok.tokenizer(name, checkpoint=checkpoint, **vistok.info("tokenizer", name).tiny | {"tower": SMALL_CLIP})


def test_the_authors_flat_checkpoint_loads_and_every_other_key_is_named(tmp_path: Path) -> None:
    model = model_of()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    theirs = authors_names(model)
    path = tmp_path / "seed_quantizer.pt"
    torch.save(theirs, path)
    loaded = load(path)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    theirs["vision_proj.weight"] = torch.zeros(2, 2)
    theirs["pos_embed"] = torch.zeros(1, 3, 48)
    del theirs["Qformer.bert.encoder.layer.1.output_query.dense.bias"]
    torch.save(theirs, path)
    with pytest.raises(ValueError) as error:
        load(path)
    for part in (
        "missing Qformer.bert.encoder.layer.1.output_query.dense.bias [48]",
        "unexpected vision_proj.weight [2, 2]",
        "pos_embed: expected [1, 4, 48], got [1, 3, 48]",
    ):
        assert part in str(error.value)


def test_the_depth_of_the_reverse_qformer_is_that_of_the_checkpoint_and_stays_so(tmp_path: Path) -> None:
    deeper = model_of("seed_qformer_head", reverse_layers=5)
    path = tmp_path / "seed_quantizer.pt"
    torch.save(authors_names(deeper), path)
    loaded = load(path, "seed_qformer_head").eval()
    assert loaded.Reverse_Qformer.layers == 5
    loaded.save_pretrained(tmp_path / "saved")
    again: Any = Seed.from_pretrained(tmp_path / "saved")
    tokens = TokenTensor(spec=deeper.spec, indices=torch.arange(8).reshape(2, 4))
    with torch.no_grad():
        for other in (loaded, again.eval()):
            assert torch.equal(other.decode_embedding(tokens), deeper.decode_embedding(tokens))


def test_a_reverse_qformer_of_another_depth_stays_as_still_as_the_one_before(tmp_path: Path) -> None:
    theirs = authors_names(model_of("seed_qformer_head", reverse_layers=5))
    model = model_of("seed_qformer_head").requires_grad_(False)
    model.rename_keys(theirs)
    assert model.Reverse_Qformer.layers == 5
    assert not any(module.training for module in model.Reverse_Qformer.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    trained = model_of("seed_qformer_head").train()
    trained.rename_keys(theirs)
    assert all(module.training for module in trained.Reverse_Qformer.modules())
    assert all(parameter.requires_grad for parameter in trained.Reverse_Qformer.parameters())


def published(head: str) -> dict[str, tuple[int, ...]]:
    """Every tensor of the published model, from its paper's and classes' sizes; nothing of this is asked of ours."""
    shapes: dict[str, tuple[int, ...]] = {"query_tokens": (1, 32, 768)}

    def linear(name: str, out: int, source: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, source), (out,)

    def norm(name: str, width: int = 768) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    def attention(name: str, source: int) -> None:
        linear(f"{name}.self.query", 768, 768)
        linear(f"{name}.self.key", 768, source)
        linear(f"{name}.self.value", 768, source)
        linear(f"{name}.output.dense", 768, 768)
        norm(f"{name}.output.LayerNorm")

    def qformer(name: str, layers: int, source: int) -> None:
        norm(f"{name}.bert.embeddings.LayerNorm")
        shapes[f"{name}.bert.embeddings.position_ids"] = (1, 512)
        for layer in range(layers):
            root = f"{name}.bert.encoder.layer.{layer}"
            attention(f"{root}.attention", 768)
            if layer % 2 == 0:
                attention(f"{root}.crossattention", source)
            linear(f"{root}.intermediate_query.dense", 3072, 768)
            linear(f"{root}.output_query.dense", 768, 3072)
            norm(f"{root}.output_query.LayerNorm")

    tower = "visual_encoder"
    shapes |= {f"{tower}.cls_token": (1, 1, 1408), f"{tower}.pos_embed": (1, 257, 1408)}
    shapes |= {f"{tower}.patch_embed.proj.weight": (1408, 3, 14, 14), f"{tower}.patch_embed.proj.bias": (1408,)}
    for block in range(39):
        root = f"{tower}.blocks.{block}"
        norm(f"{root}.norm1", 1408)
        norm(f"{root}.norm2", 1408)
        shapes |= {f"{root}.attn.{name}": (1408,) for name in ("q_bias", "v_bias")}
        shapes[f"{root}.attn.qkv.weight"] = (4224, 1408)
        linear(f"{root}.attn.proj", 1408, 1408)
        linear(f"{root}.mlp.fc1", 6144, 1408)
        linear(f"{root}.mlp.fc2", 1408, 6144)
    norm("ln_vision", 1408)
    qformer("Qformer", 12, 1408)
    shapes["quantize.embedding.weight"] = (8192, 32)
    linear("encode_task_layer.0", 768, 768)
    linear("encode_task_layer.2", 32, 768)
    linear("decode_task_layer.0", 32, 32)
    linear("decode_task_layer.2", 768, 32)
    for place, blocks in (("pos_embed", "blocks"), ("pos_embed_image", "blocks_image")):
        shapes[place] = (1, 32, 768)
        for block in range(4):
            root = f"{blocks}.{block}"
            norm(f"{root}.norm1")
            linear(f"{root}.attn.qkv", 2304, 768)
            linear(f"{root}.attn.proj", 768, 768)
            norm(f"{root}.norm2")
            linear(f"{root}.mlp.fc1", 3072, 768)
            linear(f"{root}.mlp.fc2", 768, 3072)
    if head == "mlp":
        shapes |= {f"image_down.{2 * i}.weight": shape for i, shape in enumerate([(256, 768), (128, 256), (32, 128)])}
        linear("distill_image_proj", 1024, 1024)
    else:
        shapes["reverse_tokens"] = (1, 1, 768)
        qformer("Reverse_Qformer", 12, 768)
        linear("distill_image_proj", 1024, 768)
    return shapes


@pytest.mark.slow
@pytest.mark.parametrize(("name", "head"), [("seed", "mlp"), ("seed_qformer_head", "qformer")])
def test_the_published_model_fits_key_by_key(name: str, head: str) -> None:
    with torch.device("meta"):
        model: Any = vistok.tokenizer(name)
        theirs = {key: torch.empty(shape) for key, shape in published(head).items()}
    ours = model.rename_keys(theirs)
    model.load_state_dict(ours, strict=True)
    assert {key: value.shape for key, value in ours.items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert sum(v.numel() for v in model.visual_encoder.state_dict().values()) == pytest.approx(985.9e6, rel=1e-3)


def test_a_tower_of_another_model_is_read_from_its_file_and_stored_nowhere_else(tmp_path: Path) -> None:
    model = model_of(**MICRO)
    assert {name for name in model.state_dict() if name.startswith("visual_encoder")} == {"visual_encoder.digest"}
    assert not list(model.visual_encoder.parameters())
    with torch.no_grad():
        tokens = model.encode(pictures(96))
        model.save_pretrained(tmp_path)
        assert (tmp_path / "model.safetensors").stat().st_size < 1_000_000
        loaded = vistok.tokenizer("seed", checkpoint=tmp_path).eval()  # type: ignore[attr-defined]
        assert torch.equal(loaded.encode(pictures(96)).indices, tokens.indices)
        half = loaded.to(torch.bfloat16).visual_encoder(pictures(96).bfloat16())
    assert half.dtype == torch.bfloat16


def test_a_checkpoint_made_with_other_weights_of_the_tower_is_refused() -> None:
    model = model_of(**MICRO)
    with torch.device("meta"):
        assert model_of(**MICRO).state_dict().keys() == model.state_dict().keys()
    state = model.state_dict()
    state["visual_encoder.digest"] = state["visual_encoder.digest"].roll(1)
    with pytest.raises(ValueError, match="weights that this checkpoint was made with"):
        model.load_state_dict(state)


@torch.no_grad()
def test_the_tower_gives_what_its_library_gives_before_the_last_norm() -> None:
    from transformers import CLIPVisionModel

    model = model_of(**MICRO)
    tower = model.visual_encoder
    net = CLIPVisionModel(tower.net.config)
    weights = dict(tower.net.named_buffers())
    net.load_state_dict({name: weights.get(name, value) for name, value in net.state_dict().items()})
    expected = net.eval()((pictures(96) - 0.5) / 0.5).last_hidden_state
    torch.testing.assert_close(tower(pictures(96)), expected)
    assert expected.shape == (2, 145, 128)


@torch.no_grad()
def test_a_timm_tower_gives_all_tokens_of_its_last_block() -> None:
    import timm

    sizes = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    for name in ("eva_giant_patch14_224", "vit_tiny_patch16_224"):
        model = model_of(tower={"method": "timm", "name": name, "settings": sizes})
        net = timm.create_model(name, img_size=16, num_classes=0, **sizes).eval()
        net.load_state_dict(model.visual_encoder.net.state_dict(), strict=False)
        net.norm = net.fc_norm = torch.nn.Identity()
        mean, std = model.visual_encoder.mean, model.visual_encoder.std
        expected = net.forward_features((pictures() - mean) / std)
        assert expected.shape == (2, 5, 24)
        torch.testing.assert_close(model.visual_encoder(pictures()), expected)


@pytest.mark.slow
@torch.no_grad()
def test_an_open_clip_tower_gives_all_tokens_of_its_last_block() -> None:
    sizes = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16}
    model = model_of(tower={"method": "open_clip", "name": "ViT-B-32", "settings": {"vision_cfg": sizes}})
    net = model.visual_encoder.net
    images = (pictures() - model.visual_encoder.mean) / model.visual_encoder.std
    assert torch.equal(model.visual_encoder(pictures()), net.transformer(net._embeds(images)))
    assert model.visual_encoder(pictures()).shape == (2, 5, 32)


@pytest.mark.parametrize(
    ("tower", "message"),
    [
        ({"method": "keras"}, "method to be one of timm, open_clip, transformers, got 'keras'"),
        ({"method": "transformers", "settings": {}}, "settings of a CLIPVisionConfig"),
        ({**MICRO["tower"], "prefix": "vision."}, "missing embeddings.class_embedding"),
        ({"method": "timm", "name": "resnet18"}, "expected a vision transformer"),
    ],
)
def test_towers_that_cannot_be_are_named(tower: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Seed(tower=tower, image_size=96)


def tiny_pipeline(width: int) -> Any:
    """diffusers' own classes with random weights: image embeddings of `width`, pictures of 16x16 pixels."""
    import diffusers
    import transformers
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

    torch.manual_seed(0)
    layers = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = transformers.CLIPVisionConfig(**layers, image_size=8, patch_size=8, projection_dim=width)
    text = transformers.CLIPTextConfig(
        **layers, vocab_size=4, max_position_embeddings=6, bos_token_id=0, eos_token_id=1, pad_token_id=1
    )
    words: Any = transformers.CLIPTokenizer(
        vocab={"<|startoftext|>": 0, "<|endoftext|>": 1, "!": 2, "!</w>": 3}, merges=[], model_max_length=6
    )
    channels: dict[str, Any] = {"block_out_channels": (8, 8), "norm_num_groups": 4}
    return diffusers.StableUnCLIPImg2ImgPipeline(
        feature_extractor=transformers.CLIPImageProcessor(size=8, crop_size=8),
        image_encoder=transformers.CLIPVisionModelWithProjection(vision),
        image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=width),
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=words,
        text_encoder=transformers.CLIPTextModel(text),
        unet=diffusers.UNet2DConditionModel(
            **channels,
            sample_size=8,
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=8,
            attention_head_dim=4,
            class_embed_type="projection",
            projection_class_embeddings_input_dim=2 * width,
        ),
        scheduler=diffusers.DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False
        ),
        vae=diffusers.AutoencoderKL(
            **channels,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        ),
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@torch.no_grad()
def test_the_first_picture_starts_from_the_noise_that_all_later_ones_start_from() -> None:
    from diffusers import EulerDiscreteScheduler

    pipeline = tiny_pipeline(20)
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="leading")
    pipeline.set_progress_bar_config(disable=True)
    model = model_of(sampling={"steps": 2}, pipeline=pipeline)
    started: list[Tensor] = []
    scale = pipeline.scheduler.scale_model_input

    def seen(sample: Tensor, step: Any) -> Tensor:
        started.append(sample)
        return scale(sample, step)  # type: ignore[no-any-return]

    pipeline.scheduler.scale_model_input = seen
    tokens = model.encode(pictures())
    first = model.decode(tokens)
    assert pipeline.scheduler.init_noise_sigma > 1.1
    torch.testing.assert_close(started[0][:1], model.unclip._latents * pipeline.scheduler.init_noise_sigma)
    assert torch.equal(model.decode(tokens), first)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@torch.no_grad()
def test_images_come_back_through_an_unclip_pipeline_the_same_each_time(tmp_path: Path) -> None:
    tiny_pipeline(20).save_pretrained(tmp_path / "pipeline")
    model = model_of(sampling={"steps": 2})
    assert "decode" in model.cannot
    model.attach(str(tmp_path / "pipeline"))
    assert "decode" not in model.cannot
    tokens = model.encode(pictures(batch=3))
    images = model.decode(tokens)
    assert images.shape == (3, 3, 16, 16) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1 and images.std() > 0.01
    assert torch.equal(model.decode(tokens), images)
    assert torch.equal(model.decode(tokens.replace(embeds=None)), images)
    torch.testing.assert_close(model.decode(tokens[1:2])[0], images[1], rtol=0, atol=1e-4)
    others = tokens.replace(embeds=None, indices=tokens.indices.flip(1))
    assert (model.decode(others) - images).abs().amax((1, 2, 3)).min() > 1e-4
    smaller = tokens.replace(spec=tokens.spec.__class__(**{**vars(tokens.spec), "image_size": (12, 10)}))
    assert model.decode(smaller).shape == (3, 3, 12, 10) and model.generate(smaller).shape == (3, 3, 16, 16)
    by_object = model_of(sampling={"steps": 2}, pipeline=model.unclip.pipeline)
    assert torch.equal(by_object.decode(tokens), images)
    drawn_otherwise = model_of(sampling={"steps": 2, "seed": 1}, pipeline=model.unclip.pipeline)
    assert not torch.allclose(drawn_otherwise.decode(tokens), images)
    by_object.save_pretrained(tmp_path / "saved")
    assert "pipeline" not in (tmp_path / "saved" / "config.json").read_text()
    narrow = model_of(embedding_dim=12, pipeline=model.unclip.pipeline)
    with pytest.raises(ValueError, match=r"\[B, 20\] for this pipeline, got \[3, 12\]"):
        narrow.decode(tokens)
    with pytest.raises(TypeError, match="got Linear"):
        model.attach(torch.nn.Linear(1, 1))
