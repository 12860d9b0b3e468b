"""Training new rows alone: old rows keep their bits under every optimizer, whatever it decays.

Zeroing the gradient of old rows is not enough: AdamW's decay moves them all the same. So the matrices are frozen and
the new rows are parameters of their own, in float32, put in place of the matrices' rows while the model runs; neither a
gradient nor an optimizer's state has the size of the vocabulary. For models in PEFT there are settings for its two
routes. V rows, D width, n new rows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vistok.lvlm.new_rows import Attachment, matrices


class NewRows(nn.Module):
    """The new rows of a model as parameters `rows[name]`, [n, D] or [n]; a context in which the model uses them.

    Give `parameters()` to the optimizer. Leaving the context writes them into the model's matrices, `write` does at
    any time (before `save_pretrained`, say); their dtype rounds them there. Losses that read the head's weight
    without calling the head do not see them.
    """

    def __init__(self, model: Any, attachment: Attachment) -> None:
        """Raises: ValueError if the attachment has no new rows."""
        super().__init__()
        if not attachment.new:
            raise ValueError("NewRows: expected an attachment with new rows, it found all of its strings in the model")
        self.rows = nn.ParameterDict()
        ids = torch.tensor(attachment.new, device=model.get_input_embeddings().weight.device)
        for name, matrix in matrices(model).items():
            self.rows[name] = nn.Parameter(matrix[ids].detach().float())
        place = torch.full((attachment.rows[1],), -1, device=ids.device)
        place[ids] = torch.arange(len(ids), device=ids.device)
        self._ids, self._place = ids, place
        self._model = [model]  # in a list, or it would be a submodule
        self._handles: list[Any] = []
        self._frozen: list[tuple[nn.Parameter, bool]] = []

    def __enter__(self) -> "NewRows":
        model = self._model[0]
        self._frozen = [(matrix, matrix.requires_grad) for matrix in matrices(model).values()]
        for matrix, _ in self._frozen:
            matrix.requires_grad_(False)
        self._handles = [model.get_input_embeddings().register_forward_hook(self._embed)]
        if model.get_output_embeddings() is not None:
            self._handles.append(model.get_output_embeddings().register_forward_hook(self._score))
        return self

    def __exit__(self, *error: object) -> None:
        self.write()
        for handle in self._handles:
            handle.remove()
        for matrix, trained in self._frozen:
            matrix.requires_grad_(trained)
        self._handles, self._frozen = [], []

    @torch.no_grad()
    def write(self) -> None:
        """Copy the rows into the model's matrices."""
        for name, matrix in matrices(self._model[0]).items():
            matrix[self._ids] = self.rows[name].to(matrix)

    def _embed(self, module: nn.Module, inputs: Sequence[Any], output: Tensor) -> Tensor:
        local = self._place[inputs[0]]
        new: Tensor = self.rows["embedding"][local.clamp(min=0)].to(output.dtype)
        # Some models multiply by the root of their width inside the embedding (Gemma), and what is hooked is behind it.
        scale = getattr(module, "embed_scale", 1.0)
        new = new * (scale.to(output.dtype) if isinstance(scale, Tensor) else scale)
        return torch.where((local >= 0)[..., None], new, output)

    def _score(self, module: nn.Module, inputs: Sequence[Any], output: Tensor) -> Tensor:
        rows = self.rows["head" if "head" in self.rows else "embedding"].to(output.dtype)
        bias = self.rows["bias"].to(output.dtype) if "bias" in self.rows else None
        return output.index_copy(-1, self._ids, nn.functional.linear(inputs[0], rows, bias))


def trainable_token_settings(model: Any, attachment: Attachment) -> dict[str, Any]:
    """For `LoraConfig(**settings, ...)`: the adapter trains and stores the new rows alone, of the head as well.

    A plain list of indices would leave a head that is not tied untrained. Raises: ValueError if the head has a bias,
    which this route does not train.
    """
    names = _names(model)
    if "bias" in matrices(model):
        raise ValueError("trainable_token_settings: expected a head without bias; use modules_to_save_settings")
    wanted = [names[name] for name in matrices(model)]
    return {"trainable_token_indices": {name: list(attachment.new) for name in wanted}}


def modules_to_save_settings(model: Any) -> dict[str, Any]:
    """For `LoraConfig(**settings, ...)`: the adapter trains and stores both matrices whole; old rows move, too."""
    names = _names(model)
    tied = model.get_output_embeddings() is not None and "head" not in matrices(model)
    return {"modules_to_save": list(names.values()), **({"ensure_weight_tying": True} if tied else {})}


def _names(model: Any) -> dict[str, str]:
    """Where embedding and head are in the model."""
    parts = {"embedding": model.get_input_embeddings(), "head": model.get_output_embeddings()}
    return {
        part: next(name for name, found in model.named_modules() if found is module)
        for part, module in parts.items()
        if module is not None
    }
