"""Pre-training of a plain vision transformer by hidden patches (MAE, arXiv:2111.06377) on scenes and photographs.

The encoder is a timm VisionTransformer that sees only the patches that are not hidden; a light decoder, thrown away
afterwards, gets its tokens with one learnt token in every gap and predicts the pixels there. Every draw of a step comes
from (seed, step), so the state is weights, average, optimizers and the step. B images, N patches, P prefix tokens.
"""

import copy
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from vistok.layers.vit_block import EPS, VitBlock
from vistok.train.augment import augmented
from vistok.train.checkpoint import read_state, write_state
from vistok.train.masked_features import draw_mask
from vistok.train.mixed_pictures import MixedPictures
from vistok.train.moving_average import moving_average
from vistok.train.optimizers import OPTIMIZERS, restore, update, warm_cosine
from vistok.train.step_loop import OnStep, run_steps

_MEAN, _STD = 0.5, 0.25  # of all channels, which the shipped config states too


@dataclass(frozen=True)
class Training:
    """One run. photos: folders of training pictures; scene_share: of scenes in a batch; crop: side of all pictures.

    architecture, model: of `timm.create_model`, a VisionTransformer; mask_ratio: of patches that are hidden;
    decoder_width, decoder_depth, decoder_heads: of what is thrown away. learning_rate falls on a cosine to 0.
    """

    out: str
    photos: list[str] = field(default_factory=list)
    architecture: str = "vit_tiny_patch16_224"
    model: dict[str, Any] = field(default_factory=dict)
    mask_ratio: float = 0.75
    decoder_width: int = 96
    decoder_depth: int = 2
    decoder_heads: int = 3
    scene_share: float = 0.5
    steps: int = 4000
    batch: int = 64
    crop: int = 64
    scales: list[int] = field(default_factory=lambda: [1000, 700, 500, 350, 250, 180, 130, 100, 70])
    jitter: float = 0.2
    optimizer: str = "adamw"
    learning_rate: float = 2e-3
    warmup: int = 200
    weight_decay: float = 0.05
    clip: float = 1.0
    ema: float = 0.998
    bf16: bool = True
    seed: int = 0
    threads: int = 0
    save_every: int = 200
    log_every: int = 50


def train(training: Training, on_step: OnStep | None = None) -> dict[str, float]:
    """Run a recipe to its end and write the averaged encoder to `out/model`; returns the last logged metrics."""
    trainer = Trainer(training)
    metrics = trainer.run(on_step)
    write_backbone(trainer.finished(), training, Path(training.out) / "model")
    return metrics


class Trainer:
    """Encoder, decoder, average, optimizers and step of one run; `run()` goes on from the last checkpoint in `out`."""

    def __init__(self, config: Training) -> None:
        """Raises: ValueError for an unknown optimizer, or an architecture that is no VisionTransformer."""
        if config.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"masked_autoencoder: expected optimizer {' or '.join(OPTIMIZERS)}, got {config.optimizer!r}"
            )
        if config.threads:
            torch.set_num_threads(config.threads)
        self.config = config
        self.out = Path(config.out)
        torch.manual_seed(config.seed)
        encoder = make_backbone(config)
        self.model = MaskedAutoencoder(encoder, config.decoder_width, config.decoder_depth, config.decoder_heads)
        self.average = AveragedModel(self.model, multi_avg_fn=moving_average(config.ema))
        self.optimizers = OPTIMIZERS[config.optimizer](self.model, config.learning_rate, config.weight_decay)
        self.pictures = MixedPictures(config.photos, config.crop, config.scales, config.seed, config.scene_share)
        self.step = 0
        self.seconds = 0.0

    def run(self, on_step: OnStep | None = None) -> dict[str, float]:
        """Go on from the last checkpoint to the last step, saving on the way; returns the last logged metrics."""
        return run_steps(self, on_step)

    def train_step(self) -> dict[str, float]:
        """One update; returns the squared error of hidden pixels in standard deviations, and their PSNR."""
        config = self.config
        torch.manual_seed(config.seed * 1_000_003 + self.step)
        images = augmented(self.pictures.batch(self.step, config.batch), config.jitter)
        hidden = draw_mask(len(images), self.model.patches, config.mask_ratio, 1.0)
        self.model.train()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.bf16):
            loss = self.model((images - _MEAN) / _STD, hidden)
        rate = warm_cosine(config.learning_rate, self.step, config.steps, config.warmup)
        norm = update(self.optimizers, loss, self.model.parameters(), rate, config.clip)
        self.average.update_parameters(self.model)
        self.step += 1
        psnr = -10 * torch.log10(loss.detach() * _STD**2)
        return {"loss": float(loss.detach()), "psnr": float(psnr), "grad_norm": float(norm)}

    def finished(self) -> nn.Module:
        """The averaged encoder in eval mode, as timm builds it."""
        average = self.average.module
        assert isinstance(average, MaskedAutoencoder)
        encoder: nn.Module = make_backbone(self.config)
        encoder.load_state_dict(average.encoder.state_dict())
        return encoder.eval()

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        write_state(self.out, state)

    def resume(self) -> None:
        """Go on from `out/last.pt` if there is one."""
        state = read_state(self.out)
        if state is None:
            return
        self.step, self.seconds = state["step"], state["seconds"]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        restore(self.optimizers, state["optimizers"])


class MaskedAutoencoder(nn.Module):
    """A timm VisionTransformer that sees some patches, and a decoder that predicts the pixels of the others."""

    def __init__(self, encoder: Any, width: int, depth: int, heads: int) -> None:
        """width, depth, heads: of the decoder. Raises: ValueError unless the heads divide the width."""
        super().__init__()
        self.encoder = encoder
        self.patch: int = encoder.patch_embed.patch_size[0]
        self.patches: int = encoder.patch_embed.num_patches
        self.prefix: int = encoder.num_prefix_tokens
        # The library's own forward calls `patch_drop` between the embeddings and the blocks.
        self.seen = VisibleTokens(self.prefix)
        encoder.patch_drop = self.seen
        for block in encoder.blocks:
            # On CPUs the backward of the fused kernel takes three times as long as the plain products.
            block.attn.fused_attn = False
        self.to_decoder = nn.Linear(encoder.embed_dim, width)
        self.gap = nn.Parameter(torch.randn(width) * 0.02)
        self.places = nn.Parameter(torch.randn(self.prefix + self.patches, width) * 0.02)
        self.blocks = nn.Sequential(*(VitBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.to_pixels = nn.Linear(width, 3 * self.patch**2)

    def forward(self, images: Tensor, hidden: Tensor) -> Tensor:
        """images [B, 3, S, S] of mean 0, hidden [B, N] bool, as many in each row -> squared error there, []."""
        batch = len(images)
        kept = (~hidden).nonzero()[:, 1].reshape(batch, -1)
        self.seen.kept = kept
        try:
            tokens = self.to_decoder(self.encoder.forward_features(images))
        finally:
            self.seen.kept = None
        # In the table every token finds its place: prefix and visible ones theirs, all others that of the gap.
        filled = torch.cat([tokens, self.gap.to(tokens.dtype).expand(batch, 1, -1)], 1)
        source = torch.full((batch, self.patches), tokens.shape[1], device=images.device)
        source.scatter_(1, kept, torch.arange(kept.shape[1], device=images.device).expand_as(kept) + self.prefix)
        prefix = torch.arange(self.prefix, device=images.device).expand(batch, -1)
        order = torch.cat([prefix, source], 1)
        decoded = self.blocks(filled.gather(1, order[..., None].expand(-1, -1, filled.shape[2])) + self.places)
        predicted = self.to_pixels(self.norm(decoded[:, self.prefix :][hidden])).float()
        target = nn.functional.pixel_unshuffle(images, self.patch).flatten(2).transpose(1, 2)[hidden]
        return nn.functional.mse_loss(predicted, target)


class VisibleTokens(nn.Module):
    """Stands in for timm's `patch_drop`: keeps the prefix and the patches numbered by `kept` [B, K], or all."""

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix
        self.kept: Tensor | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, P + N, D] -> [B, P + K, D]."""
        if self.kept is None:
            return tokens
        prefix, patches = tokens[:, : self.prefix], tokens[:, self.prefix :]
        return torch.cat([prefix, patches.gather(1, self.kept[..., None].expand(-1, -1, tokens.shape[2]))], 1)


def make_backbone(config: Training) -> Any:
    """The VisionTransformer of a recipe, without a head. Raises: ValueError if timm makes something else of it."""
    import timm
    from timm.models.vision_transformer import VisionTransformer

    settings = {"img_size": config.crop, "num_classes": 0, **config.model}
    encoder = timm.create_model(config.architecture, pretrained=False, **settings)
    if not isinstance(encoder, VisionTransformer):
        raise ValueError(
            f"masked_autoencoder: expected a VisionTransformer of timm, {config.architecture} is a "
            f"{type(encoder).__name__}"
        )
    return encoder


def write_backbone(encoder: nn.Module, config: Training, folder: Path) -> None:
    """Write float16 weights and timm's config.json to `folder`, whole or not at all.

    `timm.create_model("local-dir:FOLDER")` and `vistok.tokenizer("timm_backbone", checkpoint=FOLDER)` read it.
    """
    partial = folder.with_name(f"{folder.name}.tmp.{os.getpid()}")
    partial.mkdir(parents=True)
    half = copy.deepcopy(encoder).half()
    save_file(half.state_dict(), partial / "model.safetensors")
    described = {
        "architecture": config.architecture,
        "num_classes": 0,
        "num_features": half.num_features,
        "pretrained_cfg": {
            "tag": "",
            "custom_load": False,
            "input_size": [3, config.crop, config.crop],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": [_MEAN] * 3,
            "std": [_STD] * 3,
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
        "model_args": {"img_size": config.crop, **config.model},
    }
    (partial / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
