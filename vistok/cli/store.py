"""Look at a token store and check it."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vistok.report.json_file import write_json


def info(path: str, *, json: str | None = None) -> None:
    """Show what a token store holds and how far it is.

    Args:
        path: folder of the store.
        json: file to write the numbers to.
    """
    from vistok.data.store import TokenStore

    store = TokenStore(path)
    commits = store.commits.values()
    facts = {
        "tokenizer": store.tokenizer,
        "fingerprint": store.fingerprint,
        "plan": store.dataset["plan_hash"],
        "columns": ", ".join(f"{name} {dtype}" for name, dtype in store.dataset["columns"].items()),
        "shards committed": len(commits),
        "shards planned": store.dataset["num_shards"],
        "samples": len(store),
        "tokens": sum(record["n_tokens"] for record in commits),
        "bytes": sum(record["bytes"] for record in commits),
        "errors": sum(record["n_errors"] for record in commits),
    }
    table = Table(title=escape(path), show_header=False)
    for name, value in facts.items():
        shown = str(value)[:16] if name in ("fingerprint", "plan") else str(value)
        table.add_row(name, escape(shown))
    Console(highlight=False).print(table)
    if json is not None:
        numbers = {name.replace(" ", "_"): value for name, value in facts.items()}
        write_json(json, numbers)


def verify(path: str, *, json: str | None = None) -> int:
    """Recompute every hash and check offsets, ids and numbers; exit code 1 if a shard is bad.

    Args:
        path: folder of the store.
        json: file to write the problems to, by shard.
    """
    from vistok.data.store import read_dataset
    from vistok.data.verify import verify_store

    problems = verify_store(path)
    console = Console(highlight=False, soft_wrap=True)
    for shard, said in problems.items():
        for problem in said:
            console.print(f"shard {shard}: {problem}", markup=False, style="red")
    planned = read_dataset(Path(path))["num_shards"]
    committed = len(list((Path(path) / "commits").glob("*.json")))
    console.print(f"{committed} of {planned} shards committed, {len(problems)} bad", markup=False)
    if json is not None:
        write_json(json, problems)
    return 1 if problems else 0


COMMAND = {"info": info, "verify": verify}
