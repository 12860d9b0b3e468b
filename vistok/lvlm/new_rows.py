"""Token families attached to a Hugging Face tokenizer and language model, and taken off again.

`resize_token_embeddings` would shrink a model whose matrix has spare rows, and starts new rows nearly equal; here no
matrix ever gets smaller and rows start as asked. Old rows keep their bits. V rows, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AddedToken

from vistok.lvlm.row_starts import RowStart, mean
from vistok.lvlm.vocabulary import TokenFamily, VocabMap


@dataclass(frozen=True)
class Attachment:
    """What `attach` did. ids: of all strings, markers included; maps: by family; new: ids whose rows were started.

    tokens, rows: of tokenizer and matrices before and after. undo: what `detach` needs.
    """

    families: tuple[TokenFamily, ...]
    ids: Mapping[str, int]
    maps: Mapping[str, VocabMap]
    new: tuple[int, ...]
    tokens: tuple[int, int]
    rows: tuple[int, int]
    undo: "Undo" = field(repr=False)

    @property
    def new_strings(self) -> tuple[str, ...]:
        """The string of every new row."""
        strings = {number: string for string, number in self.ids.items()}
        return tuple(strings[number] for number in self.new)


@dataclass(frozen=True)
class Undo:
    """tokenizer: its state before, None if it has no fast backend; spare: [k, D] rows that were started, by matrix."""

    tokenizer: bytes | None
    spare: Mapping[str, Tensor]


def matrices(model: Any) -> dict[str, nn.Parameter]:
    """The matrices with one row for each token: "embedding" [V, D], "head" [V, D] and "bias" [V] if there are any.

    A head that is tied to the embedding is the same parameter and not listed again. Raises: ValueError for an adapter
    around the model, or an embedding without a weight.
    """
    if hasattr(model, "merge_and_unload"):
        raise ValueError(
            "new rows: expected the model itself, got one with an adapter around it; call model.merge_and_unload() "
            "first, or attach before the adapter"
        )
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(getattr(embedding, "weight", None), nn.Parameter):
        raise ValueError(f"new rows: expected an embedding with a weight, got {type(embedding).__name__}")
    found: dict[str, nn.Parameter] = {"embedding": embedding.weight}
    if head is not None and head.weight is not embedding.weight:
        found["head"] = head.weight
    if head is not None and getattr(head, "bias", None) is not None:
        found["bias"] = head.bias
    return found


@torch.no_grad()
def attach(
    tokenizer: Any,
    model: Any,
    families: Sequence[TokenFamily],
    *,
    start: RowStart | Mapping[str, RowStart] | None = None,
    pad_to_multiple_of: int = 64,
    reuse_unused: bool = False,
    special: bool = False,
    generator: torch.Generator | None = None,
) -> Attachment:
    """Give every string of the families an id and a row; families that are there already stay as they are.

    start: of the rows of codes, for all families or by name, `mean()` if left out; markers and padding rows start at
    the mean. Rows beyond the tokenizer's length that a checkpoint has already are used first; if there are not enough,
    the matrices grow to a multiple of `pad_to_multiple_of`, and with `reuse_unused` that is an error instead.
    special: whether decoding with skip_special_tokens drops the strings. Build optimizers afterwards.
    Raises: ValueError if a family is there in part, two families share a string, a marker is nowhere, or rows lack.
    """
    known: dict[str, int] = tokenizer.get_vocab()
    missing = _missing(known, families)
    tokens, rows = len(tokenizer), len(matrices(model)["embedding"])
    target = max(rows, tokens + len(missing))
    if target > rows:
        if reuse_unused:
            raise ValueError(
                f"attach: expected {len(missing)} spare rows to reuse, got {max(0, rows - tokens)} ({rows} rows for "
                f"{tokens} tokens); leave reuse_unused at False, and the matrices grow"
            )
        target = -(-target // pad_to_multiple_of) * pad_to_multiple_of
    before = _tokenizer_state(tokenizer)
    plain = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    tokenizer.add_tokens([AddedToken(string, special=special, **plain) for string in missing])
    try:
        added = list(range(tokens, tokens + len(missing)))
        # What add_tokens returns differs between versions for strings that are there already: ids are the truth.
        if len(tokenizer) != tokens + len(missing) or tokenizer.convert_tokens_to_ids(missing) != added:
            raise ValueError(
                f"attach: expected the tokenizer to give {len(missing)} strings the ids {tokens}.."
                f"{tokens + len(missing) - 1} in order, it now has {len(tokenizer)} tokens"
            )
        known = tokenizer.get_vocab()
        ids = {string: known[string] for family in families for string in (*family.strings, *family.markers)}
        just_added = set(added)
        new = tuple(sorted({number for number in ids.values() if number >= rows or number in just_added}))
        spare = {
            name: matrix[[number for number in new if number < rows]].detach().clone()
            for name, matrix in matrices(model).items()
        }
        if target > rows:
            _grow(model, target)
    except BaseException:
        _restore_tokenizer(tokenizer, before)
        raise
    maps = {family.name: VocabMap.of(tokenizer, family) for family in families}
    attachment = Attachment(
        tuple(families), ids, maps, new, (tokens, len(tokenizer)), (rows, target), Undo(before, spare)
    )
    draw = generator if generator is not None else torch.Generator().manual_seed(0)
    try:
        for matrix in matrices(model).values():
            _start_rows(matrix, attachment, start, draw)
    except BaseException:
        detach(tokenizer, model, attachment)
        raise
    return attachment


@torch.no_grad()
def detach(tokenizer: Any, model: Any, attachment: Attachment) -> None:
    """Put tokenizer and matrices back as they were before `attach`, to the bit.

    What training changed in old rows or elsewhere in the model stays changed, and optimizers still hold the larger
    matrices: build them anew. Raises: ValueError if something else was attached since (detach in reverse order), or
    if the tokenizer has no fast backend, which alone can forget a token: load it again then.
    """
    held = (len(tokenizer), len(matrices(model)["embedding"]))
    if held != (attachment.tokens[1], attachment.rows[1]):
        raise ValueError(
            f"detach: expected {attachment.tokens[1]} tokens and {attachment.rows[1]} rows as attach left them, got "
            f"{held[0]} and {held[1]}; detach in reverse order of attaching"
        )
    if attachment.undo.tokenizer is None and attachment.tokens[0] != attachment.tokens[1]:
        raise ValueError(
            f"detach: expected a tokenizer with a fast backend, {type(tokenizer).__name__} cannot forget tokens; load "
            "tokenizer and model again"
        )
    _restore_tokenizer(tokenizer, attachment.undo.tokenizer)
    rows = attachment.rows[0]
    if rows != attachment.rows[1]:
        model.resize_token_embeddings(rows)
    spare = [number for number in attachment.new if number < rows]
    for name, matrix in matrices(model).items():
        matrix[spare] = attachment.undo.spare[name].to(matrix)


def _missing(known: Mapping[str, int], families: Sequence[TokenFamily]) -> list[str]:
    """Strings to add, in order; families must be known wholly or not at all."""
    strings = [string for family in families for string in family.strings]
    if len(set(strings)) != len(strings):
        twice = next(string for string in strings if strings.count(string) > 1)
        raise ValueError(f"attach: expected families that share no string, {twice!r} is in two of them")
    missing: list[str] = []
    for family in families:
        lacking = [string for string in family.strings if string not in known]
        if lacking and len(lacking) != len(family.strings):
            raise ValueError(
                f"attach: expected a tokenizer that knows all {len(family.strings)} strings of family "
                f"{family.name!r} or none, {len(lacking)} are missing, the first {lacking[0]!r}; it was made for a "
                "family of another size"
            )
        missing += lacking
    for family in families:
        for marker in family.markers:
            if marker not in known and marker not in strings:
                raise ValueError(
                    f"attach: expected marker {marker!r} of family {family.name!r} among its strings or the "
                    "tokenizer's own, it is in neither"
                )
    return missing


def _start_rows(
    matrix: nn.Parameter,
    attachment: Attachment,
    start: RowStart | Mapping[str, RowStart] | None,
    generator: torch.Generator,
) -> None:
    """Write the rows of new ids; rows that the matrix got and that are nobody's yet take the mean."""
    rows, maps, new = attachment.rows[0], attachment.maps, set(attachment.new)
    # Spare rows behind the tokenizer's length may hold anything, so they say nothing about learned ones.
    old = matrix[: min(attachment.tokens[0], rows)].detach().float()
    table = old if old.ndim == 2 else old[:, None]
    values = matrix.data if matrix.ndim == 2 else matrix.data[:, None]
    centre = mean()
    values[rows:] = table.mean(0).to(values)
    for family in attachment.families:
        codes = torch.tensor(maps[family.name].codes, dtype=torch.int64)
        marked = [maps[family.name].begin, maps[family.name].end]
        single = [i for i in (maps[family.name].row_end, maps[family.name].size_end) if i is not None]
        markers = [number for number in dict.fromkeys((*marked[0], *marked[1], *single)) if number in new]
        chosen = torch.tensor([number in new for number in codes.tolist()], dtype=torch.bool)
        if bool(chosen.any()):
            of_family = start.get(family.name, centre) if isinstance(start, Mapping) else start or centre
            # A head's bias is one number for each token, in which no geometry of codes can be.
            made = (of_family if matrix.ndim == 2 else centre)(table, len(codes), generator)
            if made.shape != (len(codes), table.shape[1]):
                raise ValueError(
                    f"start of family {family.name!r}: expected rows [{len(codes)}, {table.shape[1]}], got "
                    f"{list(made.shape)}"
                )
            values[codes[chosen]] = made[chosen].to(values)
        if markers:
            values[markers] = centre(table, len(markers), generator).to(values)


def _grow(model: Any, rows: int) -> None:
    with torch.random.fork_rng(devices=[]):  # transformers draws rows that are overwritten anyway
        model.resize_token_embeddings(rows, mean_resizing=False)
    for name, matrix in matrices(model).items():
        if len(matrix) != rows:
            raise ValueError(f"attach: expected transformers to give the {name} {rows} rows, got {len(matrix)}")


def _tokenizer_state(tokenizer: Any) -> bytes | None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None else backend.__getstate__()


def _restore_tokenizer(tokenizer: Any, state: bytes | None) -> None:
    if state is not None:
        tokenizer.backend_tokenizer.__setstate__(state)
