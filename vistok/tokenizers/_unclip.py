"""Pictures of image embeddings by diffusion: diffusers' StableUnCLIPImg2ImgPipeline, as SEED-2 uses it
(arXiv:2310.01218, section 3.1).

The same embedding gives the same picture for as long as the object lives: the latents that diffusion starts from are
drawn once and shared by all images, and what noise the pipeline adds is drawn anew from one seed for each of them.
"""

from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from vistok.weights import repository


@dataclass(frozen=True)
class Sampling:
    """guidance: weight of classifier-free guidance, 1 = none. noise_level: 0..1000, of the embedding. seed: of all."""

    guidance: float = 10.0
    noise_level: int = 0
    steps: int = 20
    seed: int = 0


class Unclip:
    """Image embeddings [B, E] -> images [B, 3, H, W], of the pipeline's own size."""

    def __init__(self, pipeline: Any, sampling: Sampling) -> None:
        """pipeline: a StableUnCLIPImg2ImgPipeline, or what `from_pretrained` takes: a folder, or
        [hf:]owner/name[@revision] on the hub; only safetensors are read.

        Raises: TypeError for another kind of pipeline; OSError as diffusers does if there is none at that place.
        """
        self.pipeline = _pipeline(pipeline)
        self.sampling = sampling
        self._follows = self.pipeline is not pipeline
        config = self.pipeline.unet.config
        generator = torch.Generator().manual_seed(sampling.seed)
        self._latents = torch.randn(1, config.in_channels, config.sample_size, config.sample_size, generator=generator)

    def __call__(self, embeds: Tensor) -> Tensor:
        """embeds [B, E] -> images [B, 3, H, W] float32 in [0, 1], on the device of `embeds`.

        Raises: ValueError unless E is the width that the pipeline was made for.
        """
        pipeline, sampling = self.pipeline, self.sampling
        width = pipeline.image_normalizer.mean.shape[-1]
        if embeds.ndim != 2 or embeds.shape[1] != width:
            raise ValueError(f"unclip: expected embeddings [B, {width}] for this pipeline, got {list(embeds.shape)}")
        if self._follows:
            pipeline.to(embeds.device)
        device, dtype = pipeline._execution_device, pipeline.unet.dtype
        # The pipeline takes given latents as they are, and some schedulers know their scale by the steps set only.
        pipeline.scheduler.set_timesteps(sampling.steps, device=device)
        latents = self._latents * pipeline.scheduler.init_noise_sigma
        # One generator for each image, so that no picture depends on what else is in the batch.
        generators = [torch.Generator(device).manual_seed(sampling.seed) for _ in embeds]
        images: Tensor = pipeline(
            prompt=[""] * len(embeds),
            image_embeds=embeds.to(device, dtype),
            latents=latents.expand(len(embeds), -1, -1, -1).to(device, dtype),
            guidance_scale=sampling.guidance,
            noise_level=sampling.noise_level,
            num_inference_steps=sampling.steps,
            generator=generators,
            output_type="pt",
        ).images
        return images.to(embeds.device, torch.float32).clamp(0, 1)


def _pipeline(given: Any) -> Any:
    from diffusers import StableUnCLIPImg2ImgPipeline

    if isinstance(given, StableUnCLIPImg2ImgPipeline):
        return given
    if not isinstance(given, str | PathLike):
        raise TypeError(
            f"unclip: expected a StableUnCLIPImg2ImgPipeline, its folder or its name on the hub, got "
            f"{type(given).__name__}"
        )
    place, revision = repository(given)
    kind: Any = StableUnCLIPImg2ImgPipeline
    made = kind.from_pretrained(place, revision=revision, use_safetensors=True)
    made.set_progress_bar_config(disable=True)
    return made
