import json

import pyarrow as pa
import torch

from vistok.data.shard import ROW_SCHEMA, Sample, write_shard
from vistok.data.summary import summarize_store
from vistok.tokens import TokenSpec


def test_a_summary_counts_captions_reasons_and_user_columns(tmp_path):
    dataset = {"format": "vistok-store", "version": 1, "plan_hash": "p", "num_shards": 3, "tokenizer": "made"}
    dataset |= {"fingerprint": "f", "columns": {"indices": "uint16"}, "split": "train"}
    (tmp_path / "dataset.json").write_text(json.dumps(dataset))
    schema = pa.schema([*ROW_SCHEMA, ("tag", pa.int8())])
    columns = {"indices": torch.zeros(2, dtype=torch.uint16)}
    for shard, captions in enumerate([["a", None], ["", "b", None]]):
        samples = [
            Sample({"key": f"{shard}{row}", "caption": caption}, TokenSpec("made", 0, (9,)), columns)
            for row, caption in enumerate(captions)
        ]
        kinds = ["ValueError"] * (shard + 1) + ["OSError"]
        errors = [{"key": f"bad{row}", "error": kind, "message": "m"} for row, kind in enumerate(kinds)]
        header = {"tokenizer": "made", "fingerprint": "f"}
        write_shard(tmp_path, shard, samples, errors, header=header, plan_hash="p", schema=schema)
    facts = summarize_store(tmp_path)
    assert facts["errors_by_reason"] == {"ValueError": 3, "OSError": 2} and facts["errors"] == 5
    assert (facts["captions"], facts["samples"], facts["tokens"]) == (3, 5, 10)
    assert (facts["user_columns"], facts["split"]) == ({"tag": "int8"}, "train")
    assert (facts["shards_committed"], facts["shards_planned"]) == (2, 3)
