"""What a language model with visual words names and draws. S pictures, N codes of each, n ids."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vistok.train.portrait_reader import ATTRIBUTES


@torch.no_grad()
def naming(model: Any, tokenizer: Any, vocabulary: Any, codes: Tensor, captions: Sequence[str]) -> dict[str, float]:
    """How often each attribute stands in its place of what the model says, greedily, behind codes [S, N]."""
    ids = vocabulary.span(codes)
    prompt = torch.cat((ids.new_full((len(ids), 1), tokenizer.bos_token_id), ids), 1)
    length = len(ATTRIBUTES) + 1
    said = _continue(model, prompt, length, lambda logits: logits.argmax(-1))
    words = [tokenizer.convert_ids_to_tokens(row) for row in said.tolist()]
    wanted = [caption.split() for caption in captions]
    return {
        name: sum(got[place] == right[place] for got, right in zip(words, wanted, strict=True)) / len(wanted)
        for place, name in enumerate(ATTRIBUTES, 1)
    }


@torch.no_grad()
def drawing(
    model: Any,
    tokenizer: Any,
    vocabulary: Any,
    codes: Tensor,
    captions: Sequence[str],
    *,
    generator: torch.Generator,
    temperature: float = 0.9,
) -> Tensor:
    """Codes [S, N] drawn behind captions of equal length, as many as `codes` [S, N] has; only codes can be drawn."""
    texts = [tokenizer(caption, add_special_tokens=False).input_ids for caption in captions]
    prompt = torch.tensor([[tokenizer.bos_token_id, *text, *vocabulary.begin] for text in texts])
    allowed = vocabulary.to_ids(torch.arange(len(vocabulary)))

    def draw(logits: Tensor) -> Tensor:
        chances = (logits[:, allowed].float() / temperature).softmax(-1)
        places = torch.multinomial(chances, 1, generator=generator)[:, 0]
        return torch.index_select(allowed, 0, places)

    drawn: Tensor = vocabulary.to_codes(_continue(model, prompt, codes.shape[1], draw))
    return drawn


def picture_sheet(file: Path, *rows: Tensor, columns: int = 12, scale: int = 2) -> None:
    """Write pictures [S, 3, side, side] in [0, 1] under one another, the first `columns` of each row, as PNG."""
    strips = [torch.cat(list(row[:columns]), 2) for row in rows]
    pixels = (torch.cat(strips, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    sheet = Image.fromarray(pixels)
    sheet.resize((scale * sheet.width, scale * sheet.height), Image.Resampling.NEAREST).save(file)


def _continue(model: Any, prompt: Tensor, length: int, choose: Any) -> Tensor:
    """Ids [S, length] behind prompt [S, n], each chosen from the logits [S, V] of its place."""
    was_training = model.training
    model.eval()
    found: list[Tensor] = []
    ids, cache = prompt, None
    for _ in range(length):
        output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        found.append(choose(output.logits[:, -1]))
        ids = found[-1][:, None]
    model.train(was_training)
    return torch.stack(found, 1)
