"""Emergent Semantics Beyond Token Embeddings: Transformer LMs with Frozen Visual Unicode Representations.

A. Bochkov, arXiv:2507.04886. Each token of any vocabulary has the picture of its string as its embedding, and keeps it:
    bitmap of the string -> principal components -> length 1.
Here a string is drawn at the left of a canvas of `side` x 2 side pixels; what is longer is squeezed to its width. Where
pictures have fewer components than the model is wide, the rest is 0. Tokens that look alike get equal rows: what the
font does not have, and spaces of one width. The head is not tied to the table, as in the paper. V tokens, D width.

Measured: a Llama of 3 layers and width 96 on captions of scenes, 87 words, 150 steps of 8 captions, nats a token on 60
others after 30, 75 and 150 steps, one seed: embedding trained 1.111, 0.980, 0.952; frozen pictures 1.122, 0.987, 0.955;
frozen random rows 1.121, 0.984, 0.956. Nothing is lost by freezing, and at this size nothing is gained by pictures.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from vistok.data.rendered_text import TextRenderer
from vistok.lvlm.row_starts import RowStart


def token_strings(tokenizer: Any) -> list[str]:
    """The string of every id of a Hugging Face tokenizer, leading spaces as they are; its name where nothing shows."""
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    shown = [tokenizer.decode([number], clean_up_tokenization_spaces=False) for number in range(len(names))]
    # Part of a character in bytes, or a mark that decodes to nothing: the token's own name tells more.
    return [
        text if text.strip() and "\ufffd" not in text else str(name) for text, name in zip(shown, names, strict=True)
    ]


def glyph_pictures(strings: Sequence[str], renderer: TextRenderer | None = None, *, side: int = 24) -> Tensor:
    """How dark each pixel of each string is, [V, side, 2 side] float32 in [0, 1]. Raises: ValueError for no strings."""
    if isinstance(strings, str) or not strings:
        raise ValueError(f"glyphs: expected a list of at least one string, got {strings!r}")
    renderer = TextRenderer(side * 2 // 3) if renderer is None else renderer
    height = max(side, renderer.height)
    found = []
    for text in strings:
        line = " ".join(text.splitlines()) if text.strip() else text.replace("\n", " ")
        wide = max(2 * height, renderer.width(line))
        picture = 1 - renderer.picture(line, height, wide).float() / 255
        found.append(interpolate(picture[None, None], (side, 2 * side), mode="area")[0, 0])
    return torch.stack(found)


def glyph_table(strings: Sequence[str], width: int, renderer: TextRenderer | None = None, *, side: int = 24) -> Tensor:
    """[V, D=width] float32 rows of length 1: principal components of the strings' pictures, the largest first.

    A component's sign is such that its largest entry is positive, so that the table is the same on every machine up to
    rounding. An entirely average picture stays 0. Raises: ValueError for no strings or a width below 1.
    """
    if width < 1:
        raise ValueError(f"glyph_table: expected a width of at least 1, got {width}")
    pictures = glyph_pictures(strings, renderer, side=side).flatten(1).double()
    pictures = pictures - pictures.mean(0)
    _, values, axes = torch.linalg.svd(pictures, full_matrices=False)
    rank = int((values > 1e-9 * values.max().clamp(min=1e-12)).sum())
    axes = axes[: min(rank, width)]
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    rows = torch.zeros(len(strings), width, dtype=torch.float64)
    rows[:, : len(axes)] = pictures @ axes.T
    table: Tensor = normalize(rows, dim=1).float()
    return table


def glyphs(strings: Sequence[str], renderer: TextRenderer | None = None) -> RowStart:
    """New rows that lie to one another as pictures of their strings do, about the mean of the old rows and as far off.

    Raises: ValueError when called for another number of rows.
    """

    def start(old: Tensor, count: int, generator: torch.Generator) -> Tensor:
        if count != len(strings):
            raise ValueError(f"glyphs: expected one string for each of {count} new rows, got {len(strings)}")
        reach = (old - old.mean(0)).norm(dim=1).mean()
        rows: Tensor = old.mean(0) + reach * glyph_table(strings, old.shape[1], renderer).to(old)
        return rows

    return start


@torch.no_grad()
def freeze_glyphs(
    model: Any, tokenizer: Any, renderer: TextRenderer | None = None, *, scale: float | None = None
) -> Tensor:
    """Put pictures of its tokens into the embedding of a Hugging Face causal model and freeze it; returns [V, D].

    A head that was tied becomes one of its own with the weights it had. scale: length of the rows; None: the mean
    length of those that were there. Rows beyond the tokenizer's keep their values. Raises: ValueError for more tokens
    than rows.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    strings = token_strings(tokenizer)
    if len(strings) > len(embedding.weight):
        raise ValueError(
            f"freeze_glyphs: expected an embedding with a row for each of {len(strings)} tokens, got "
            f"{len(embedding.weight)} rows; call model.resize_token_embeddings first"
        )
    if head is not None and head.weight is embedding.weight:
        head.weight = nn.Parameter(head.weight.detach().clone())
        model.config.tie_word_embeddings = False
    length = float(embedding.weight.float().norm(dim=1).mean()) if scale is None else scale
    table = length * glyph_table(strings, embedding.weight.shape[1], renderer)
    rows: Tensor = embedding.weight.detach().clone()
    rows[: len(table)] = table.to(rows)
    embedding.weight = nn.Parameter(rows, requires_grad=False)
    return rows
