"""What each class of autoencoder in diffusers asks of its caller, as a table.

"Latents" are the network's own here; `statistics` say how generators want them.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import diffusers

Statistics = tuple[Any, Any]


class Family(NamedTuple):
    """What one class of diffusers asks of its caller.

    channels: config key of the latent width. stride: config key of the ratio, or of the list with one entry more than
    there are halvings. statistics: (mean, std) of raw latents by config, None where they are in the weights. latent:
    where the output of `encode` holds it. tiles: how a tile's size is told, None if the class has no tiling that works
    on images. frames: takes videos, an image is one frame. low: lowest value of a pixel, the highest is 1. fold: side
    of the patches of latents that the class itself treats as channels. square: any image is resized to one square.
    decode: what its `decode` takes besides latents. writes: keys that it writes into its config and does not take.
    cannot: as a tokenizer's, what this class adds to it.
    """

    channels: str
    stride: str
    statistics: Callable[[Mapping[str, Any]], Statistics | None]
    latent: str = "latent_dist"
    tiles: str | None = "side"
    frames: bool = False
    low: float = -1.0
    fold: int = 1
    square: bool = False
    decode: Mapping[str, Any] = {}
    writes: tuple[str, ...] = ()
    cannot: frozenset[str] = frozenset()


def by_scale(config: Mapping[str, Any]) -> Statistics:
    """(z - shift) * scale, or (z - mean) / std * scale where the config has means; None stands for 0 and 1."""
    scale = config.get("scaling_factor") or 1.0
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        return config["latents_mean"], [std / scale for std in config["latents_std"]]
    return config.get("shift_factor") or 0.0, 1.0 / scale


def by_channel(config: Mapping[str, Any]) -> Statistics:
    """(z - mean) / std; a longer list has a mean for each frame of each channel, of which an image is the first."""
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        return 0.0, 1.0
    frames = len(mean) // int(config.get("latent_channels") or config["z_dim"])
    return mean[::frames], std[::frames]


def done_inside(config: Mapping[str, Any]) -> Statistics:
    return 0.0, 1.0


_DERIVED = ("block_out_channels", "force_upcast")
FAMILIES: dict[str, Family] = {
    "AutoencoderKL": Family("latent_channels", "block_out_channels", by_scale),
    "AsymmetricAutoencoderKL": Family(
        "latent_channels", "down_block_out_channels", by_scale, tiles=None, writes=_DERIVED
    ),
    "AutoencoderKLTemporalDecoder": Family(
        "latent_channels", "block_out_channels", by_scale, tiles=None, decode={"num_frames": 1}
    ),
    "AutoencoderDC": Family(
        "latent_channels", "encoder_block_out_channels", by_scale, latent="latent", tiles="height and width"
    ),
    "AutoencoderTiny": Family(
        "latent_channels", "encoder_block_out_channels", done_inside, latent="latents", writes=_DERIVED
    ),
    "AutoencoderRAE": Family(
        "encoder_hidden_size", "patch_size", done_inside, latent="latent", tiles=None, low=0.0, square=True
    ),
    "AutoencoderKLFlux2": Family("latent_channels", "block_out_channels", lambda config: None, fold=2),
    # Its tiles are written for videos and fail on the images that it takes.
    "AutoencoderKLHunyuanImage": Family("latent_channels", "spatial_compression_ratio", by_scale, tiles=None),
    "AutoencoderKLKVAE": Family("z_channels", "ch_mult", done_inside),
    "AutoencoderKLQwenImage": Family("z_dim", "dim_mult", by_channel, tiles="height and width", frames=True),
    "AutoencoderKLWan": Family("z_dim", "dim_mult", by_channel, tiles="height and width", frames=True),
    # Its tiling switch is there and changes nothing; it pools in three dimensions, which CPUs do not do in bfloat16.
    "AutoencoderKLCosmos": Family(
        "latent_channels",
        "spatial_compression_ratio",
        by_channel,
        tiles=None,
        frames=True,
        cannot=frozenset({"bf16"}),
    ),
}


def build(kind: str, config: dict[str, Any]) -> Any:
    """An instance of a class of diffusers.

    Raises: ValueError if it refuses its config, or its library cannot build it.
    """
    taken = {name: value for name, value in config.items() if name not in FAMILIES[kind].writes}
    try:
        return getattr(diffusers, kind)(**taken)
    except AttributeError as error:
        # Its SigLIP encoder is written for another release of transformers than ours.
        raise ValueError(
            f"diffusers_vae: {kind} with {config.get('encoder_type', config)} does not build with the installed "
            f"diffusers and transformers ({error}); use another encoder or other releases"
        ) from error
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(f"diffusers_vae: {kind} refuses its config: {error}") from error


def stride(family: Family, config: Mapping[str, Any]) -> int:
    """Pixels per latent."""
    told = config[family.stride]
    if isinstance(told, int):
        return told
    # Wan 2.2 takes squares of pixels as channels before anything else.
    before = config.get("patch_size") if family.frames else None
    return int(2 ** (len(told) - 1) * (before or 1))
