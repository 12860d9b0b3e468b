"""A token store made by hand."""

import json
from pathlib import Path

import torch

from vistok.data.shard import Sample, write_shard
from vistok.data.store import TokenStore
from vistok.tokens import TokenSpec


def write_store(root: Path, lengths: list[list[int]], plan: str = "h", first: int = 0) -> TokenStore:
    """Shards of samples of so many tokens; the ids of sample k are all k, the first is sample `first`."""
    root.mkdir(parents=True)
    dataset = {"format": "vistok-store", "version": 1, "plan_hash": plan, "num_shards": len(lengths)}
    dataset |= {"tokenizer": "made", "fingerprint": "f", "columns": {"indices": "uint16"}}
    (root / "dataset.json").write_text(json.dumps(dataset))
    spec = TokenSpec("made", codebook_sizes=(900,), order="1d")
    number = first
    for shard, counts in enumerate(lengths):
        samples = []
        for count in counts:
            ids = torch.full((count,), number).to(torch.uint16)
            samples.append(Sample({"key": f"k{number:02d}"}, spec, {"indices": ids}))
            number += 1
        write_shard(root, shard, samples, [], header={"tokenizer": "made", "fingerprint": "f"}, plan_hash=plan)
    return TokenStore(root)
