"""A causal language model that makes pictures: visual ids out of extra output rows, codes in (ETT, arXiv:2505.10562).

P(id_i | prompt, x_1 .. x_{i-1}) = softmax_K(H h), h the last hidden state in front of token i, x_j the code of id j,
projected. How the paper's output layer takes the K ids is not stated: K rows of their own beside the words are ours;
drawing from visual ids alone is the paper's. B items, P words of a prompt, N visual tokens, C width, K codes.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from vistok.protocols import Tokenizer
from vistok.tokens import TokenTensor


class VisualHead(nn.Linear):
    """Hidden states [..., C] -> logits [..., K], one output row for each visual id; rows start as a model's own do."""

    def __init__(self, width: int, codebook_sizes: tuple[int, ...]) -> None:
        """Raises: ValueError unless there is one codebook: a row belongs to one id."""
        if len(codebook_sizes) != 1:
            raise ValueError(f"visual head: expected a tokenizer of one codebook, got codebook sizes {codebook_sizes}")
        super().__init__(width, codebook_sizes[0], bias=False)
        nn.init.normal_(self.weight, std=0.02)


def visual_loss(
    language: Any, head: nn.Module, visual: Tensor, ids: Tensor, prompt: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy [] of visual ids [B, N] behind a prompt of words [B, P].

    visual [B, N, C]: the projected codes of these ids, which the model reads. mask [B, P]: 1 = a word, 0 = padding, on
    the left. Raises: ValueError if ids and visual disagree.
    """
    if ids.shape != visual.shape[:2]:
        raise ValueError(f"visual loss: expected ids [B, N] of visual {list(visual.shape)}, got {list(ids.shape)}")
    words = language.get_input_embeddings()(prompt)
    # The last code is never read: nothing follows it.
    sequence = torch.cat((words, visual[:, :-1].to(words.dtype)), 1)
    seen = torch.ones_like(prompt) if mask is None else mask
    seen = torch.nn.functional.pad(seen, (0, visual.shape[1] - 1), value=1)
    hidden = language.base_model(
        inputs_embeds=sequence, attention_mask=seen, position_ids=_places(seen), use_cache=False
    ).last_hidden_state
    logits = head(hidden[:, prompt.shape[1] - 1 :].to(_dtype(head)))
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids.flatten())


@torch.no_grad()
def generate_ids(
    language: Any,
    head: nn.Module,
    read: Callable[[Tensor], Tensor],
    prompt: Tensor,
    count: int,
    *,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw `count` visual ids [B, count] int64 one after the other behind prompts [B, P], each fed back as its code.

    read: ids [B, n] -> what the model reads of them [B, n, C], the projected codes. mask [B, P]: as in `visual_loss`.
    top_k 0 and top_p 1 leave the distribution whole, as the paper samples; top_k 1 is greedy.
    Raises: ValueError for a count below 1 or a model that keeps no cache; what transformers' processors raise for their
    settings.
    """
    if count < 1:
        raise ValueError(f"generate: expected count >= 1, got {count}")
    shaping: Callable[..., Tensor] = _shaping(temperature, top_k, top_p)
    inputs = language.get_input_embeddings()(prompt)
    seen = torch.ones_like(prompt) if mask is None else mask
    ids = prompt.new_empty(len(prompt), 0)
    cache: Any = None
    while ids.shape[1] < count:
        out = language.base_model(
            inputs_embeds=inputs,
            attention_mask=seen,
            position_ids=_places(seen)[:, -inputs.shape[1] :],
            past_key_values=cache,
            use_cache=True,
        )
        cache = out.past_key_values
        if cache is None or not cache.get_seq_length():
            raise ValueError(
                "generate: expected a model that keeps a cache; call language.eval() or turn gradient checkpointing off"
            )
        logits = shaping(ids, head(out.last_hidden_state[:, -1].to(_dtype(head))).float())
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        ids = torch.cat((ids, drawn), 1)
        inputs = read(drawn).to(inputs.dtype)
        seen = torch.nn.functional.pad(seen, (0, 1), value=1)
    return ids


def ids_to_tokens(tokenizer: Tokenizer, ids: Tensor, grid: tuple[int, int]) -> TokenTensor:
    """Ids [B, h*w] in raster order as tokens that `tokenizer.decode` takes.

    Raises: ValueError if there are not h*w ids.
    """
    if ids.shape[1] != grid[0] * grid[1]:
        raise ValueError(f"ids: expected {grid[0] * grid[1]} for a grid {grid}, got {ids.shape[1]}")
    size = (grid[0] * tokenizer.spec.patch, grid[1] * tokenizer.spec.patch)
    return TokenTensor(spec=replace(tokenizer.spec, grid=grid, image_size=size), indices=ids)


def _shaping(temperature: float, top_k: int, top_p: float) -> LogitsProcessorList:
    chosen = LogitsProcessorList()
    if temperature != 1:
        chosen.append(TemperatureLogitsWarper(temperature))
    if top_k:
        chosen.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        chosen.append(TopPLogitsWarper(top_p))
    return chosen


def _dtype(head: nn.Module) -> torch.dtype:
    return next(head.parameters()).dtype


def _places(seen: Tensor) -> Tensor:
    """Positions [B, n] that begin behind the padding."""
    return (seen.cumsum(1) - 1).clamp(min=0)
