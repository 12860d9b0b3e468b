"""SEED: Planting a SEED of Vision in Large Language Model (arXiv:2307.08041), and SEED-2 of SEED-LLaMA (2310.01218).

Frozen vision tower -> ln_vision -> causal Q-Former with 32 queries -> q [B, 32, W] -> encode_task_layer -> codes.
Back: u = decode_task_layer(codes) -> blocks_image(u + pos_embed_image) -> a head, which makes the embedding that a
diffusion model turns into an image; for training, blocks(u + pos_embed) rebuilds q. No token depends on a later query,
so that a language model can write them one after another.

SEED-2 (default): one embedding of unCLIP, by perceptrons over all 32 tokens ("mlp", the released weights) or by a
learned query of a second Q-Former ("qformer"). SEED-1: 77 such queries, aligned with Stable Diffusion's text features.
B images, N tokens of the tower, C their width, Q queries, W width of the Q-Former, D width of codes, E of the result.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from vistok.layers.image_checks import check_images
from vistok.layers.preprocess import Preprocess
from vistok.layers.qformer import QFormer, learned_queries
from vistok.layers.vit_block import VitBlock
from vistok.protocols import Quantized
from vistok.registry import create, register
from vistok.tokenizers._unclip import Sampling, Unclip
from vistok.tokenizers._vision_tower import VisionTower
from vistok.tokens import TokenSpec, TokenTensor

_HEADS = ("mlp", "qformer")
_REVERSE_LAYER = re.compile(r"Reverse_Qformer\.bert\.encoder\.layer\.(\d+)\.")


class Reconstruction(NamedTuple):
    """What stage II compares: embedding [B, E] or [B, R, E] of the head; queries [B, Q, W] rebuilt from the codes,
    target [B, Q, W] what they should be; quantized [B, Q, D] with the codebook's loss and statistics."""

    embedding: Tensor
    queries: Tensor
    target: Tensor
    quantized: Quantized


@register
class Seed(nn.Module, PyTorchModelHubMixin, library_name="vistok", license="apache-2.0"):
    """32 causal discrete tokens per image, of one image size; images come back through an attached diffusion model."""

    cannot: frozenset[str] = frozenset({"decode", "budget", "any_size"})

    def __init__(
        self,
        *,
        tower: dict[str, Any] | None = None,
        image_size: int = 224,
        queries: int = 32,
        qformer: dict[str, Any] | None = None,
        quantizer: dict[str, Any] | None = None,
        decoder_layers: int = 4,
        decoder_heads: int = 12,
        head: str = "mlp",
        mlp_widths: Sequence[int] = (256, 128, 32),
        reverse_tokens: int = 1,
        reverse_layers: int = 4,
        embedding_dim: int = 1024,
        legacy_half: bool = False,
        sampling: dict[str, Any] | None = None,
        pipeline: Any = None,
        preprocess: dict[str, Any] | None = None,
    ) -> None:
        """tower: of `VisionTower`. qformer: sizes of `QFormer`. quantizer: {"method": a name, settings}.

        head: "mlp" (mlp_widths, per token) or "qformer" (reverse_tokens and reverse_layers; the number of layers gives
        way to that of a checkpoint). embedding_dim: E. legacy_half: compare codes in float16, as the authors' inference
        does, which changes ids that are close to a tie. sampling: of `Sampling`. pipeline: as for `attach`.
        Raises: ValueError for an unknown head or sizes that do not fit each other.
        """
        super().__init__()
        if head not in _HEADS:
            raise ValueError(f"seed: expected head to be one of {', '.join(_HEADS)}, got {head!r}")
        if min(queries, reverse_tokens, decoder_layers, reverse_layers) < 1 or not mlp_widths:
            raise ValueError(
                f"seed: expected queries, reverse_tokens, decoder_layers and reverse_layers >= 1 and mlp_widths, got "
                f"{queries}, {reverse_tokens}, {decoder_layers}, {reverse_layers} and {list(mlp_widths)}"
            )
        self.name = "seed"
        self.head, self.legacy_half = head, legacy_half
        self.image_size = (image_size, image_size)
        self.preprocess = Preprocess(**({"resize": self.image_size} | (preprocess or {})))
        self.visual_encoder = VisionTower(image_size, **(tower or _TOWER))
        sizes: dict[str, Any] = {
            "width": 768,
            "layers": 12,
            "heads": 12,
            "hidden": 3072,
            "cross_every": 2,
            "dropout": 0.1,
        }
        sizes |= qformer or {}
        width: int = sizes["width"]
        self.ln_vision = nn.LayerNorm(self.visual_encoder.width)
        self.query_tokens = learned_queries(queries, width)
        self.Qformer = QFormer(causal=True, image_width=self.visual_encoder.width, **sizes)
        codes: Any = create("quantizer", **_named(quantizer or _QUANTIZER))
        self.quantizer = codes
        self.dim: int = codes.dim
        self.encode_task_layer = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, self.dim))
        self.decode_task_layer = nn.Sequential(nn.Linear(self.dim, self.dim), nn.Tanh(), nn.Linear(self.dim, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, queries, width))
        self.pos_embed_image = nn.Parameter(torch.zeros(1, queries, width))
        self.blocks = nn.Sequential(*(VitBlock(width, decoder_heads) for _ in range(decoder_layers)))
        self.blocks_image = nn.Sequential(*(VitBlock(width, decoder_heads) for _ in range(decoder_layers)))
        if head == "mlp":
            self.image_down = _perceptrons(width, mlp_widths)
            self.distill_image_proj = nn.Linear(queries * mlp_widths[-1], embedding_dim)
        else:
            self._reverse = {**sizes, "image_width": width, "vocabulary": 0}
            self.reverse_tokens = learned_queries(reverse_tokens, width)
            self.Reverse_Qformer = QFormer(causal=False, **{**self._reverse, "layers": reverse_layers})
            self.distill_image_proj = nn.Linear(width, embedding_dim)
        self.sampling = Sampling(**(sampling or {}))
        # An object cannot be saved, and a folder of this machine means nothing on another one.
        stored: Any = getattr(self, "_hub_mixin_config", {})
        stored.pop("pipeline", None)
        self.unclip: Unclip | None = None
        if pipeline is not None:
            self.attach(pipeline)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Entries of the codebook."""
        sizes: tuple[int, ...] = self.quantizer.codebook_sizes
        return sizes

    @property
    def spec(self) -> TokenSpec:
        """What all token-tensors of this tokenizer share."""
        return TokenSpec(self.name, self.dim, self.codebook_sizes, image_size=self.image_size, order="causal-1d")

    def attach(self, pipeline: Any) -> Self:
        """Give the tokenizer a decoder: a StableUnCLIPImg2ImgPipeline of diffusers, its folder or its name on the hub.

        An object is used where it is; what is loaded from a folder or the hub follows the tokens' device. Raises:
        ValueError for SEED-1, whose embeddings are text features; TypeError, OSError as `Unclip`.
        """
        if self.head == "qformer" and self.reverse_tokens.shape[1] > 1:
            raise ValueError(
                f"{self.name}: expected one image embedding for unCLIP, the head makes {self.reverse_tokens.shape[1]} "
                f"text features; give them to a StableDiffusionPipeline as prompt_embeds=decode_embedding(tokens)"
            )
        self.unclip = Unclip(pipeline, self.sampling)
        self.cannot = type(self).cannot - {"decode"}
        return self

    def encode(self, images: Tensor, *, budget: int | Tensor | None = None) -> TokenTensor:
        """images [B, 3, H, W] in [0, 1] of `image_size` -> Q causal tokens: indices [B, Q], embeds [B, Q, D] codes.

        Raises: ValueError naming the shape or range that is wrong, or a budget: the decoder needs all Q tokens.
        """
        count = self.query_tokens.shape[1]
        if budget is not None:
            raise ValueError(
                f"{self.name}: expected no budget, it makes {count} tokens always; the first k of them are a code of "
                f"their own for a language model, but nothing decodes them"
            )
        check_images(self.name, images)
        if tuple(images.shape[2:]) != self.image_size:
            raise ValueError(
                f"{self.name}: expected images of {self.image_size[0]}x{self.image_size[1]} pixels, got "
                f"{images.shape[2]}x{images.shape[3]}; use model.preprocess"
            )
        latents = self.encode_task_layer(self.causal_queries(self.features(images)))
        if self.legacy_half:
            indices = _nearest_in_half(latents, self.quantizer.codebook)
            return TokenTensor(spec=self.spec, embeds=self.quantizer.lookup(indices).to(latents.dtype), indices=indices)
        quantized: Quantized = self.quantizer(latents)
        return TokenTensor(spec=self.spec, embeds=quantized.embeds, indices=quantized.indices)

    def features(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in [0, 1] -> what the Q-Former reads, [B, N, C]."""
        return self.normalised(self.visual_encoder(images))

    def normalised(self, tokens: Tensor) -> Tensor:
        """tokens [B, N, C] of the tower -> `ln_vision` of them, worked out in float32, in their dtype."""
        norm = self.ln_vision
        weight, bias = norm.weight.float(), norm.bias.float()
        return nn.functional.layer_norm(tokens.float(), norm.normalized_shape, weight, bias, norm.eps).to(tokens.dtype)

    def causal_queries(self, features: Tensor) -> Tensor:
        """features [B, N, C] -> q [B, Q, W]; q_i sees no query behind i."""
        out: Tensor = self.Qformer(self.query_tokens, features)
        return out

    def decode(self, tokens: TokenTensor) -> Tensor:
        """All Q tokens of each image -> images [B, 3, H, W] in [0, 1], brought to the encoded size.

        Raises: NotImplementedError without a pipeline; ValueError if tokens are missing.
        """
        images = self.generate(tokens)
        size = tokens.spec.image_size or self.image_size
        if images.shape[2:] == size:
            return images
        return nn.functional.interpolate(images, size=size, mode="bicubic", antialias=True).clamp(0, 1)

    def generate(self, tokens: TokenTensor) -> Tensor:
        """All Q tokens of each image -> images [B, 3, H, W] in [0, 1] of the size that the pipeline makes.

        Raises: as `decode`.
        """
        if self.unclip is None:
            raise NotImplementedError(
                f"{self.name}: expected a diffusion pipeline to decode with; attach a StableUnCLIPImg2ImgPipeline, its "
                f"folder or its name on the hub by tokenizer.attach(pipeline), or take decode_embedding(tokens)"
            )
        with torch.no_grad():
            return self.unclip(self.decode_embedding(tokens))

    def decode_embedding(self, tokens: TokenTensor) -> Tensor:
        """All Q tokens of each image -> the embedding to generate it from, [B, E], or [B, R, E] for R > 1 queries.

        Raises: ValueError if tokens are missing.
        """
        return self.embedding(self.widened(self.codes(tokens)))

    def codes(self, tokens: TokenTensor) -> Tensor:
        """All Q tokens of each image -> their codes [B, Q, D]. Raises: ValueError if tokens are missing."""
        count = self.query_tokens.shape[1]
        if tokens.num_slots != count or tokens.lengths is not None and bool((tokens.lengths < count).any()):
            raise ValueError(f"{self.name}: expected all {count} tokens of each image, got N={tokens.num_slots}")
        return tokens.embeds if tokens.embeds is not None else self.quantizer.lookup(tokens.indices)

    def widened(self, codes: Tensor) -> Tensor:
        """codes [B, Q, D] -> u [B, Q, W], what SEED-LLaMA's authors return beside the ids."""
        out: Tensor = self.decode_task_layer(codes.to(self.query_tokens.dtype))
        return out

    def embedding(self, u: Tensor) -> Tensor:
        """u [B, Q, W] -> [B, E], or [B, R, E] for R > 1 reverse tokens."""
        h = self.blocks_image(u + self.pos_embed_image)
        if self.head == "mlp":
            out: Tensor = self.distill_image_proj(self.image_down(h).flatten(1))
            return out
        out = self.distill_image_proj(self.Reverse_Qformer(self.reverse_tokens, h))
        return out[:, 0] if out.shape[1] == 1 else out

    def reconstruct(self, queries: Tensor) -> Reconstruction:
        """q [B, Q, W] -> what stage II compares; a frozen Q-Former's q may be made once and kept."""
        quantized: Quantized = self.quantizer(self.encode_task_layer(queries))
        u = self.widened(quantized.embeds)
        return Reconstruction(self.embedding(u), self.blocks(u + self.pos_embed), queries, quantized)

    def forward(self, images: Tensor) -> Reconstruction:
        """images [B, 3, H, W] in [0, 1] of `image_size` -> what a training step of stage II needs."""
        return self.reconstruct(self.causal_queries(self.features(images)))

    def rename_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The authors' names to ours; the reverse Q-Former gets as many layers as the checkpoint has for it.

        Their training and inference code build 4 and 12 layers under the same settings.
        """
        depth = max((int(found[1]) + 1 for found in map(_REVERSE_LAYER.match, tensors) if found), default=0)
        if self.head == "qformer" and depth not in (0, self.Reverse_Qformer.layers):
            old, like = self.Reverse_Qformer, self.reverse_tokens
            made = QFormer(causal=False, **{**self._reverse, "layers": depth}).to(like.device, like.dtype)
            trainable = any(parameter.requires_grad for parameter in old.parameters())
            self.Reverse_Qformer = made.train(old.training).requires_grad_(trainable)
            stored: Any = self._hub_mixin_config
            stored["reverse_layers"] = depth
        return {_renamed(name): value for name, value in tensors.items() if not name.endswith(".position_ids")}


_TOWER = {"method": "timm", "name": "eva_giant_patch14_224", "settings": {"depth": 39}}
_QUANTIZER = {"method": "vq_learned", "dim": 32, "codebook_size": 8192, "commitment_weight": 0.25, "legacy": True}


def _named(quantizer: Mapping[str, Any]) -> dict[str, Any]:
    settings = dict(quantizer)
    if "method" not in settings:
        raise ValueError(f"seed: expected quantizer to have a method such as 'vq_learned', got {quantizer}")
    return {"name": settings.pop("method"), **settings}


def _perceptrons(width: int, widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for wider, narrower in zip((width, *widths), widths, strict=False):
        layers += [nn.Linear(wider, narrower, bias=False), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _nearest_in_half(latents: Tensor, codebook: Tensor) -> Tensor:
    """argmin of |z|^2 + |e|^2 - 2 z.e in float16, [B, Q, D] and [K, D] -> [B, Q] int64."""
    z, e = latents.half(), codebook.half()
    return torch.stack(
        [(rows.square().sum(1, keepdim=True) + e.square().sum(1) - 2 * (rows @ e.T)).argmin(1) for rows in z]
    )


def _renamed(name: str) -> str:
    if name == "quantize.embedding.weight":
        return "quantizer.embedding"
    return re.sub(r"^visual_encoder\.(?!net\.|digest$)", "visual_encoder.net.", name)
