"""A vision-language model with its processor, from the package, a folder or the hub."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from vistok.weights import locate, repository

EMBEDDED = "micro_lvlm"


def load_lvlm(name: str | Path, *, device: str = "cpu", dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    """Model in evaluation mode and its processor.

    name: "micro_lvlm", which ships with vistok; a folder that `save_pretrained` wrote, model and processor; or
    `hf:owner/name[@revision]`, fetched by huggingface_hub. A local path always wins. dtype: float32 on a CPU and as
    stored elsewhere, if not given. Raises: FileNotFoundError naming what was tried; ValueError if it is no
    vision-language model or has no chat template.
    """
    source, revision = _source(name)
    kind = dtype if dtype is not None else torch.float32 if torch.device(device).type == "cpu" else "auto"
    try:
        config: Any = AutoConfig.from_pretrained(source, revision=revision)
        if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            raise ValueError(
                f"config.json says model_type {config.model_type!r}, which answers no questions on pictures"
            )
        processor: Any = AutoProcessor.from_pretrained(source, revision=revision)  # type: ignore[no-untyped-call]
        model: Any = AutoModelForImageTextToText.from_pretrained(source, config=config, revision=revision, dtype=kind)
    except OSError as error:
        raise FileNotFoundError(
            f"{name}: expected a folder or hub repository with config.json, weights and processor files, got: {error}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{name}: expected an image-text-to-text model that transformers knows: {error}") from error
    if getattr(processor, "image_processor", None) is None or getattr(processor, "chat_template", None) is None:
        raise ValueError(
            f"{name}: expected a processor for images and text with a chat template, got {type(processor).__name__}; "
            "save the processor with the model, and set its chat_template"
        )
    return model.to(device).eval(), processor


def _source(name: str | Path) -> tuple[str, str]:
    """What transformers calls the model, and its revision."""
    if Path(name).exists():
        if not (Path(name) / "config.json").is_file():
            raise FileNotFoundError(f"{name}: expected a folder with config.json, as `save_pretrained` writes it")
        return str(name), "main"
    if name == EMBEDDED:
        return str(locate(f"embedded:{EMBEDDED}")), "main"
    scheme, _, repo = str(name).partition(":")
    if scheme != "hf" or not repo:
        raise FileNotFoundError(f"no model {str(name)!r}: expected {EMBEDDED}, a folder or hf:owner/name[@revision]")
    place, revision = repository(name)
    return place, revision or "main"
