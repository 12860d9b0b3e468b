"""Hugging Face vision-language models as hosts of vistok's methods."""

try:
    from vistok.lvlm.inputs import prune_inputs
    from vistok.lvlm.prune import Pruning, prune
except ModuleNotFoundError as error:
    if not (error.name or "").startswith("transformers"):
        raise
    raise ImportError("vistok.lvlm needs the extra: pip install 'vistok[lvlm]' (transformers)") from error

__all__ = ["Pruning", "prune", "prune_inputs"]
