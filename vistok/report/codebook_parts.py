"""How a store uses its codes: facts, how many codes are used how often, and usage as tokens went by."""

import numpy as np
import torch

from vistok.data.store import TokenStore
from vistok.metrics.codebook_health import CodebookHealth
from vistok.report.page import Part
from vistok.report.parts import Facts, Remarks
from vistok.report.svg_chart import Bar, Bars, Curve, LineChart, Mark, SideBySide

_MOST = 20_000_000  # tokens: more of them tell no more of a codebook, and take minutes


def codebook_parts(store: TokenStore) -> list[Part]:
    """Nothing for continuous tokens; of several codebooks one set of parts each."""
    if "indices" not in store.columns:
        return []
    sizes = store[0].spec.codebook_sizes
    if any(size > CodebookHealth.LARGEST for size in sizes):
        return [Remarks([f"Usage is not counted for codebooks of more than {CodebookHealth.LARGEST:,} codes."])]
    try:
        books, whole = _counted(store, sizes)
    except ValueError as error:
        raise ValueError(f"{store.location}: {error}; run `vistok store verify`") from error
    parts: list[Part] = []
    for number, book in enumerate(books):
        name = f"Codebook {number + 1} of {len(books)}" if len(books) > 1 else "Codebook"
        parts += _parts_of(name, book)
    if not whole:
        parts.append(Remarks([f"Counted over the first {books[0].tokens:,} tokens of the store."]))
    return parts


def _counted(store: TokenStore, sizes: tuple[int, ...]) -> tuple[list[CodebookHealth], bool]:
    books = [CodebookHealth.empty(size) for size in sizes]
    for values, _ in store.column("indices").scan():
        if books[0].tokens >= _MOST:
            return books, False
        ids = torch.from_numpy(values.astype(np.int64)).reshape(len(values), -1)
        for book, column in zip(books, ids.unbind(1), strict=True):
            book.add(column)
    return books, True


def _parts_of(name: str, book: CodebookHealth) -> list[Part]:
    report = book.report()
    facts = [
        ("codes", f"{report['codes']:,}"),
        ("used", f"{report['codes'] - report['dead_codes']:,} ({report['usage']:.1%})"),
        ("dead codes", f"{report['dead_codes']:,}"),
        ("tokens", f"{report['tokens']:,}"),
        ("perplexity", f"{report['perplexity']:,.1f}"),
        ("bits a token, by perplexity", f"{report['bits_per_token']:.2f}"),
    ]
    course = report["usage_by_tokens"]
    marks = [Mark(tokens, 100 * usage, text=f"{tokens:,} tokens: {usage:.1%}") for tokens, usage in course]
    growth = LineChart("Usage as tokens went by", "tokens", "codes used (%)", [Curve(name, marks)], small=True)
    return [Facts(name, facts), SideBySide(f"{name}: usage", [_histogram(book), growth])]


def _histogram(book: CodebookHealth) -> Bars:
    """How many codes are used never, once, 2 to 3 times, 4 to 7 times and so on."""
    classes = torch.where(book.counts > 0, (book.counts.double().log2() + 1e-9).floor().long() + 1, 0)
    counts = torch.bincount(classes.clamp(min=0)).tolist()
    bars = []
    for power, count in enumerate(counts):
        low, high = (0, 0) if power == 0 else (1 << (power - 1), (1 << power) - 1)
        times = str(low) if low == high else f"{low:,} to {high:,}"
        bars.append(Bar(f"{low:,}" if low == high else f"{low:,}+", count, f"used {times} times: {count:,} codes"))
    return Bars("Codes by number of uses", "uses", "codes", bars)
