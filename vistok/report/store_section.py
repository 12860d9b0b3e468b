"""What a page tells of a token store: pictures, tokens, how the codes are used, how long samples are, what failed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vistok.data.shard_content import open_committed
from vistok.data.store import TokenStore
from vistok.data.summary import summarize_store
from vistok.report.codebook_parts import codebook_parts
from vistok.report.originals import Originals
from vistok.report.page import Part, Section
from vistok.report.parts import Facts, Remarks
from vistok.report.sortable_table import MAX_ROWS, Cell, SortableTable, cell_of
from vistok.report.store_pictures import Decoder, store_pictures
from vistok.report.svg_chart import Bar, Bars, SideBySide

_MANY = 24
_OF_ERRORS = ("key", "error", "message")


def store_section(path: str | Path, decoder: Decoder, originals: Originals | None, samples: int, room: int) -> Section:
    """All parts; `samples` pictures at most, and no more once they take `room` bytes.

    Raises: FileNotFoundError, ValueError if `path` is no store or a file of it is damaged.
    """
    store = TokenStore(path)
    facts = summarize_store(path)
    parts: list[Part] = [Facts("Store", _facts(facts))]
    if len(store):
        parts += store_pictures(store, decoder, originals, samples, room)
        parts += codebook_parts(store)
        lengths = _lengths(store)
        parts += [SideBySide("Lengths", lengths)] if lengths else []
    else:
        parts.append(Remarks(["No sample is committed yet."]))
    parts += _errors(path)
    return Section(Path(str(path)).name or str(path), f"token store at {path}", parts)


def _facts(facts: dict[str, Any]) -> list[tuple[str, str]]:
    samples, tokens = facts["samples"], facts["tokens"]
    rows = [
        ("tokenizer", facts["tokenizer"]),
        ("samples", f"{samples:,}"),
        ("tokens", f"{tokens:,}"),
        ("tokens a sample", f"{tokens / samples:,.1f}" if samples else "-"),
        ("bytes", f"{facts['bytes']:,}"),
        ("shards", f"{facts['shards_committed']:,} of {facts['shards_planned']:,}"),
        ("columns", ", ".join(f"{name} ({dtype})" for name, dtype in facts["columns"].items())),
        ("captions", f"{facts['captions']:,}"),
        ("failed pictures", _counted(facts["errors"], facts["errors_by_reason"])),
        ("your columns", ", ".join(f"{name} ({kind})" for name, kind in facts["user_columns"].items()) or "none"),
        ("fingerprint", str(facts["fingerprint"])[:16]),
        ("plan", str(facts["plan"])[:16]),
    ]
    if facts["split"]:
        rows.append(("split", str(facts["split"])))
    if facts["merged_from"]:
        rows.append(("merged from", f"{len(facts['merged_from'])} plans"))
    return [(name, str(value)) for name, value in rows]


def _counted(total: int, reasons: dict[str, int]) -> str:
    told = ", ".join(f"{reason}: {count:,}" for reason, count in reasons.items())
    return f"{total:,} ({told})" if told else f"{total:,}"


def _lengths(store: TokenStore) -> list[Bars]:
    """The histogram of tokens a sample; nothing where all have as many."""
    lengths = store.lengths
    lowest, highest = int(lengths.min()), int(lengths.max())
    if lowest == highest:
        return []
    width = max(1, -(-(highest - lowest + 1) // _MANY))
    bars = []
    for begin in range(lowest, highest + 1, width):
        end = begin + width - 1
        count = int(((lengths >= begin) & (lengths <= end)).sum())
        label = f"{begin}" if width == 1 else f"{begin}-{end}"
        bars.append(Bar(label, count, f"{label} tokens: {count:,} samples"))
    title = f"Samples by length, {lengths.mean():,.1f} tokens on average"
    return [Bars(title, "tokens", "samples", bars)]


def _errors(path: str | Path) -> Sequence[Part]:
    committed = open_committed(path)
    total = sum(record["n_errors"] for record in committed.commits.values())
    rows: list[list[Cell]] = []
    for shard in committed.commits:
        if len(rows) >= MAX_ROWS:
            break
        rows += [[cell_of(error.get(name, "")) for name in _OF_ERRORS] for error in committed.errors(shard)]
    if not rows:
        return []
    return [SortableTable("Pictures that failed", _OF_ERRORS, rows[:MAX_ROWS], max(0, total - MAX_ROWS))]
