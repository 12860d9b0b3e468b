"""A language model for text alone: of its own, or taken out of a vision-language model."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from vistok.lvlm.load import EMBEDDED, load_lvlm
from vistok.lvlm.micro import make_tokenizer
from vistok.weights import repository


def load_causal_lm(name: str | Path) -> Any:
    """A Hugging Face causal language model in evaluation mode, float32.

    name: "micro_lvlm" or another vision-language model, whose language model is taken; a folder; or
    `hf:owner/name[@revision]`. Raises: FileNotFoundError if there is none.
    """
    if str(name) == EMBEDDED and not Path(name).exists():
        return language_of(load_lvlm(name)[0])
    source, revision = repository(name)
    try:
        config: Any = AutoConfig.from_pretrained(source, revision=revision)
        if config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            return language_of(load_lvlm(name)[0])
        model: Any = AutoModelForCausalLM.from_pretrained(source, config=config, revision=revision)
    except OSError as error:
        raise FileNotFoundError(f"{name}: expected {EMBEDDED}, a folder or hf:owner/name, got: {error}") from error
    return model.float().eval()


def load_words(name: str | Path) -> Any:
    """The tokenizer of the language model that `load_causal_lm` loads by that name."""
    if str(name) == EMBEDDED and not Path(name).exists():
        return make_tokenizer()
    source, revision = repository(name)
    tokenizers: Any = AutoTokenizer
    return tokenizers.from_pretrained(source, revision=revision)


def language_of(model: Any) -> Any:
    """The language model inside a vision-language model with its output head, as a causal model that shares weights.

    Raises: ValueError if the model has no `language_model` with a head.
    """
    inner, head = getattr(model.model, "language_model", None), model.get_output_embeddings()
    if inner is None or head is None:
        raise ValueError(f"{type(model).__name__}: expected a model with language_model and an output head")
    causal: Any = AutoModelForCausalLM.from_config(inner.config)  # type: ignore[no-untyped-call]
    setattr(causal, causal.base_model_prefix, inner)
    causal.set_output_embeddings(head)
    return causal.eval()
