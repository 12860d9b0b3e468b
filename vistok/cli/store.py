"""Look at token stores, check them, clean them, put them together, cut them, compare them, export them."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vistok.report.json_file import write_json

_SHOWN = 20  # samples of a diff
_HASHES = ("fingerprint", "plan")


def info(path: str, *, json: str | None = None) -> None:
    """Show what a token store holds and how far it is.

    Args:
        path: folder of the store, or a URL such as s3://bucket/store.
        json: file to write the numbers to.
    """
    from vistok.data.summary import summarize_store

    facts = summarize_store(path)
    _print_facts(path, {name: str(value)[:16] if name in _HASHES else value for name, value in facts.items()})
    _write(json, facts)


def verify(path: str, *, json: str | None = None) -> int:
    """Recompute every hash and check offsets, ids, rows and numbers; exit code 1 if a shard is bad.

    Args:
        path: folder of the store, or a URL such as s3://bucket/store.
        json: file to write the problems to, by shard.
    """
    from vistok.data.store_files import open_files, read_dataset
    from vistok.data.verify import verify_store

    problems = verify_store(path)
    console = Console(highlight=False, soft_wrap=True)
    for shard, said in problems.items():
        for problem in said:
            console.print(f"shard {shard}: {problem}", markup=False, style="red")
    files = open_files(path)
    planned = read_dataset(files)["num_shards"]
    committed = sum(listed.name.endswith(".json") for listed in files.listed("commits"))
    console.print(f"{committed} of {planned} shards committed, {len(problems)} bad", markup=False)
    _write(json, problems)
    return 1 if problems else 0


def gc(path: str, *, dry_run: bool = False, min_age: float | None = None, json: str | None = None) -> None:
    """Delete what interrupted runs left: temporary files, shards without a commit record, records of other plans.

    Args:
        path: folder of the store, or a URL; no other process may be writing to it.
        dry_run: only show what would be deleted.
        min_age: leave what is younger, in seconds; left out = a day behind a URL, where a run that is going on cannot
            be told from one that was interrupted, and 0 in a folder.
        json: file to write the list to.
    """
    from vistok.data.gc import collect_garbage

    garbage = collect_garbage(path, dry_run=dry_run, min_age=min_age)
    console = Console(highlight=False, soft_wrap=True)
    for item in garbage:
        console.print(f"{item.file}: {item.why}, {item.bytes} bytes", markup=False)
    size = sum(item.bytes for item in garbage)
    done = "would be deleted" if dry_run else "deleted"
    console.print(f"{len(garbage)} files, {size} bytes {done}", markup=False)
    _write(json, {"files": [item._asdict() for item in garbage], "bytes": size, "dry_run": dry_run})


def merge(stores: list[str], *, allow_incomplete: bool = False, json: str | None = None) -> None:
    """Copy several stores of one tokenizer into a new one: `merge SRC... OUT`; run again to go on.

    Args:
        stores: folders of the stores, then that of the new one.
        allow_incomplete: take what is there of a store that lacks shards.
        json: file to write the numbers to.
    """
    from vistok.data.merge import merge_stores

    if len(stores) < 2:
        raise ValueError(f"merge: expected stores and the folder of the new one (SRC... OUT), got {stores}")
    summary = asdict(merge_stores(stores[:-1], stores[-1], allow_incomplete=allow_incomplete))
    _print_facts(stores[-1], summary)
    _write(json, summary)


def split(
    src: str, out: str, *, parts: list[str], seed: int = 0, allow_incomplete: bool = False, json: str | None = None
) -> None:
    """Cut a store into several by key: `split SRC OUT --parts train=0.9 val=0.1`; run again to go on.

    Args:
        src: folder of the store.
        out: folder for the parts, OUT/train and so on.
        parts: name=fraction for each part; the fractions add up to 1.
        seed: another one gives another split.
        allow_incomplete: split what is there of a store that lacks shards.
        json: file to write the numbers to, by part.
    """
    from vistok.data.split import split_store

    summaries = split_store(src, out, _fractions(parts), seed=seed, allow_incomplete=allow_incomplete)
    for name, summary in summaries.items():
        _print_facts(name, asdict(summary))
    _write(json, {name: asdict(summary) for name, summary in summaries.items()})


def diff(a: str, b: str, *, json: str | None = None) -> int:
    """Say which samples of two stores differ, and why; exit code 0 if none does, else 1.

    Args:
        a: folder of the one store.
        b: folder of the other.
        json: file to write all differences to.
    """
    from vistok.data.diff import UNEXPLAINED, diff_stores

    found = diff_stores(a, b)
    counts = {"equal": found.equal, "different": len(found.different)}
    counts |= {f"only in {path}": len(keys) for path, keys in ((a, found.only_a), (b, found.only_b))}
    _print_facts(f"{a} and {b}", counts | {f"differ by {cause}": count for cause, count in found.causes.items()})
    console = Console(highlight=False, soft_wrap=True)
    for name, (here, there) in found.fields.items():
        console.print(f"{name}: {here!r} in {a}, {there!r} in {b}", markup=False)
    if found.different:
        _print_samples(found.different)
    if UNEXPLAINED in found.causes:
        console.print("The plans agree and the ids do not: run `vistok store verify` on both stores.", markup=False)
    _write(json, {"same": found.same, **asdict(found), "causes": found.causes})
    return 0 if found.same else 1


def export(
    store: str,
    out: str,
    *,
    to: Literal["parquet", "datasets", "webdataset"],
    allow_incomplete: bool = False,
    json: str | None = None,
) -> None:
    """Write a store in the format of another library into a new folder: `export STORE OUT --to parquet`.

    Args:
        store: folder of the store.
        out: folder that does not exist yet.
        to: parquet, datasets (Hugging Face, on disk) or webdataset (tars).
        allow_incomplete: export what is there of a store that lacks shards.
        json: file to write the numbers to.
    """
    from vistok.data.export import export_store

    samples = export_store(store, out, to, allow_incomplete=allow_incomplete)
    files = [file for file in Path(out).rglob("*") if file.is_file()]
    facts = {"to": to, "samples": samples, "files": len(files), "bytes": sum(file.stat().st_size for file in files)}
    _print_facts(out, facts)
    _write(json, facts)


def windows(
    src: str,
    out: str,
    *,
    bits: int = 128,
    levels: list[int] | None = None,
    model: str | None = None,
    json: str | None = None,
) -> None:
    """Copy a store of ids and add their windows of equal bits by arithmetic coding, the column "windows" of its rows.

    Args:
        src: folder of the store.
        out: folder of the new one.
        bits: of a window, a multiple of 16.
        levels: alphabets of the digits of an id, such as 8 8 8 5 5 5 for vq_nano; left out = digits of at most 16.
        model: store with windows whose model to use; left out = one is fitted on SRC.
        json: file to write the numbers to.
    """
    from vistok.data.store import TokenStore
    from vistok.data.window_column import WindowColumn, add_windows

    if levels is not None and model is not None:
        raise ValueError("windows: expected --levels or --model, got both; a model has its digits")
    known = None if model is None else WindowColumn(TokenStore(model)).model
    summary = add_windows(src, out, bits=bits, sizes=None if levels is None else tuple(levels), model=known)
    facts = {**asdict(summary), "ids_per_window": round(summary.ids_per_window, 2)}
    _print_facts(out, facts)
    _write(json, facts)


def _fractions(parts: list[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in parts:
        name, _, fraction = part.partition("=")
        try:
            value = float(fraction)
        except ValueError as error:
            raise ValueError(f"split: expected parts such as train=0.9, got {part!r}") from error
        if name in found:
            raise ValueError(f"split: expected every part once, got {name!r} twice")
        found[name] = value
    return found


def _print_samples(samples: tuple[Any, ...]) -> None:
    table = Table("sample", "tokens that differ", "largest difference", "cause")
    for sample in samples[:_SHOWN]:
        largest = "" if sample.max_abs is None else f"{sample.max_abs:.3g}"
        table.add_row(escape(sample.key), f"{sample.share:.1%}", largest, escape(", ".join(sample.causes)))
    Console(highlight=False).print(table)
    if len(samples) > _SHOWN:
        Console(highlight=False).print(f"and {len(samples) - _SHOWN} more; --json FILE tells all", markup=False)


def _print_facts(title: str, facts: Mapping[str, Any]) -> None:
    table = Table(title=escape(title), show_header=False)
    for name, value in facts.items():
        table.add_row(escape(name.replace("_", " ")), escape(_shown(value)))
    Console(highlight=False).print(table)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(one)}" for name, one in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value)) or "none"
    return "none" if value is None else str(value)


def _write(file: str | None, value: Any) -> None:
    if file is not None:
        write_json(file, value)


COMMAND = {
    "info": info,
    "verify": verify,
    "gc": gc,
    "merge": merge,
    "split": split,
    "diff": diff,
    "export": export,
    "windows": windows,
}
