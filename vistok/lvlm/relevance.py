"""How much every visual token matters to an answer, and how much the instruction looks at it in the first layer.

Relevance (arXiv:2506.01097, after Chefer et al., arXiv:2103.15679): for a token y_t of the answer, R = I, then layer by
layer R <- R + M R with M = mean over heads of relu(A * dA), A [H, n, n] the attention of a layer, dA the gradient of
the logit of y_t. Only the row of R at the position that predicts y_t is wanted: r = e, then from the last layer to the
first r <- r + r M, which is the same row without the n^3 products. The result is the mean over the tokens of the
answer. The score is the logit, not the probability: the paper does not say which.

B items, n tokens, H heads, V visual tokens of the fullest item, T tokens of the longest answer.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vistok.lvlm.layer_attention import RowAttention
from vistok.rows import take_rows

IGNORED = -100


class VisualRow(NamedTuple):
    """One number per visual token: values [B, V] float32, the first lengths[b] of a row count, the others are 0."""

    values: Tensor
    lengths: Tensor

    @property
    def mask(self) -> Tensor:
        """[B, V] bool, True = a visual token."""
        return torch.arange(self.values.shape[1], device=self.values.device) < self.lengths[:, None]


class Relevance(NamedTuple):
    """visual: relevance of the visual tokens; correct [B] bool: whether greedy decoding gives the answer."""

    visual: VisualRow
    correct: Tensor


def relevance(model: Any, inputs: Mapping[str, Tensor], labels: Tensor, *, skip: Collection[int] = ()) -> Relevance:
    """Relevance of each visual token to the answers, by one forward pass and one backward pass per answer token.

    model: a Hugging Face vision-language model in eval mode. inputs: what its `forward` takes for prompt and answer
    together, padded on any side. labels: [B, n] int64, the answer's tokens where they stand in `input_ids`, -100
    elsewhere. skip: token ids that must be answered, too, but are not explained, such as the end of a turn.
    All attention maps and their gradients are held at once; `model.requires_grad_(False)` saves the memory of the
    weights' own. Raises: ValueError if the model is in training mode, labels do not fit or there is nothing to explain.
    """
    if model.training:
        raise ValueError("relevance: expected a model in eval mode, dropout would blur it; call model.eval()")
    position, wanted, answered = _answer_tokens(inputs["input_ids"], labels)
    explained = answered & ~torch.isin(wanted, torch.tensor(sorted(skip), dtype=wanted.dtype, device=wanted.device))
    if not bool(explained.any(1).all()):
        raise ValueError("relevance: expected an answer token to explain in every item, found one without")
    with torch.enable_grad():
        hidden, maps = _run_eager(model, inputs)
        logits = model.get_output_embeddings()(take_rows(hidden, position)).float()
        scores = logits.gather(2, wanted[:, :, None]).squeeze(2)
        total = torch.zeros(inputs["input_ids"].shape, device=scores.device)
        for step in explained.any(0).nonzero().flatten().tolist():
            score = scores[:, step].where(explained[:, step], 0).sum()  # items do not depend on each other
            gradients = torch.autograd.grad(score, maps, retain_graph=True)
            row = nn.functional.one_hot(position[:, step], total.shape[1]).float()
            row = relevance_row(row, [_weighted(*pair) for pair in zip(maps, gradients, strict=True)])
            total += row * explained[:, step, None]
    correct = ((logits.argmax(2) == wanted) | ~answered).all(1)
    return Relevance(visual_columns(model, inputs, total / explained.sum(1, keepdim=True)), correct)


def relevance_row(row: Tensor, layers: Iterable[Tensor]) -> Tensor:
    """row [B, n], layers: M [B, n, n] of each layer, first to last -> the row of the product of all I + M."""
    for layer in reversed(list(layers)):
        row = row + (row[:, None] @ layer).squeeze(1)
    return row


@torch.no_grad()
def first_layer_attention(
    model: Any, inputs: Mapping[str, Tensor], labels: Tensor | None = None, rows: Tensor | None = None
) -> VisualRow:
    """How much the instruction looks at each visual token in the decoder's first layer; no layer is run.

    Mean over heads and rows of the softmax over all keys. inputs: what the model's `forward` takes. labels: [B, n],
    where they are not -100 an answer stands, which is no instruction. rows: [B, n] bool, other rows than those of all
    text behind the last visual token. Raises: ValueError if an item has no such row or the layer sees a window only.
    """
    ids = inputs["input_ids"]
    valid = inputs.get("attention_mask", torch.ones_like(ids)) > 0
    if rows is None:
        visual = visual_mask(model, ids)
        rows = (visual.flip(1).cumsum(1).flip(1) == 0) & visual.any(1, keepdim=True)
    rows = rows & valid & (True if labels is None else labels == IGNORED)
    if not bool(rows.any(1).all()):
        raise ValueError(
            "first_layer_attention: expected text behind the last visual token of every item, found one without; "
            "name the rows of the instruction by rows="
        )
    decoder = model.get_decoder()
    args, kwargs = _stop_at(model, decoder.layers[0], inputs)
    hidden = args[0] if args else kwargs["hidden_states"]
    _check_window(decoder.layers[0].self_attn, ids.shape[1])
    attend = RowAttention(decoder.layers[0], hidden, kwargs["position_embeddings"], valid)
    return visual_columns(model, inputs, attend(rows))


def visual_mask(model: Any, input_ids: Tensor) -> Tensor:
    """Which of input_ids [B, n] are placeholders of visual tokens, [B, n] bool."""
    names = ("image_token_id", "video_token_id")
    known = [getattr(model.config, name) for name in names if getattr(model.config, name, None) is not None]
    return torch.isin(input_ids, torch.tensor(known, device=input_ids.device))


def visual_columns(model: Any, inputs: Mapping[str, Tensor], values: Tensor) -> VisualRow:
    """The visual tokens' part of values [B, n], moved to the front."""
    visual = visual_mask(model, inputs["input_ids"])
    lengths = visual.sum(1)
    index = torch.sort((~visual).to(torch.int8), dim=1, stable=True).indices[:, : int(lengths.max())]
    row = VisualRow(values.float().gather(1, index), lengths)
    return row._replace(values=row.values.masked_fill(~row.mask, 0))


def _weighted(attention: Tensor, gradient: Tensor) -> Tensor:
    """M [B, n, n] of one layer from its attention and gradient [B, H, n, n]."""
    return (attention.detach().float() * gradient.float()).clamp(min=0).mean(1)


def _answer_tokens(input_ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Positions that predict an answer's tokens, these tokens, and which of them count: [B, T] each."""
    if labels.shape != input_ids.shape:
        raise ValueError(f"relevance: expected labels {list(input_ids.shape)}, got {list(labels.shape)}")
    labelled = labels != IGNORED
    if bool(labelled[:, :1].any()) or bool((labelled & (labels != input_ids)).any()):
        raise ValueError("relevance: expected labels to be -100 or the token of input_ids there, behind a first token")
    counts = labelled.sum(1)
    order = torch.sort((~labelled).to(torch.int8), dim=1, stable=True).indices[:, : int(counts.max())]
    answered = torch.arange(order.shape[1], device=order.device) < counts[:, None]
    return (order - 1).clamp(min=0), input_ids.gather(1, order), answered


def _run_eager(model: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Hidden states [B, n, D] behind the last layer and every layer's attention [B, H, n, n], with their graph."""
    decoder = model.get_decoder()
    with torch.no_grad():
        _, call = _stop_at(model, decoder, inputs)
    # Frozen weights carry no gradient: it needs somewhere to begin.
    call["inputs_embeds"] = call["inputs_embeds"].detach().requires_grad_()
    with _eager(decoder):
        output = decoder(**{**call, "use_cache": False}, output_attentions=True)
    return output.last_hidden_state, output.attentions


class _Stopped(Exception):
    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.call = args, kwargs


def _stop_at(model: Any, module: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What `module` is called with when the model runs on `inputs`; nothing behind it runs."""

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Stopped(args, kwargs)

    handle = module.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(**inputs, use_cache=False)
    except _Stopped as stopped:
        return stopped.call
    finally:
        handle.remove()
    raise ValueError(f"expected {type(model).__name__} to run its {type(module).__name__}; it did not")


@contextmanager
def _eager(decoder: Any) -> Iterator[None]:
    """Attention that gives its maps, for the decoder alone and for this long."""
    before = decoder.config._attn_implementation
    decoder.set_attn_implementation("eager")
    try:
        yield
    finally:
        decoder.set_attn_implementation(before)


def _check_window(attention: Any, tokens: int) -> None:
    window = getattr(attention, "sliding_window", None)
    if window is not None and window < tokens:
        raise ValueError(
            f"first_layer_attention: expected a first layer that sees the whole prompt, got a window of {window} "
            f"tokens for {tokens}"
        )
