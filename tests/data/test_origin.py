import pytest

from vistok.data.origin import Origin, dataset_of, origins

BASE = {"tokenizer": "t", "fingerprint": "f", "columns": {"indices": "uint16"}}


def test_a_store_that_was_encoded_has_one_plan():
    dataset = {"format": "vistok-store", "version": 1, "plan_hash": "p", "num_shards": 4, **BASE, "batch": 8}
    assert origins(dataset) == [Origin(range(4), {**BASE, "batch": 8, "plan_hash": "p"})]


def test_plans_come_back_out_of_a_new_dataset():
    plans = [
        {**BASE, "batch": 8, "seed": 0, "plan_hash": "p"},
        {**BASE, "batch": 4, "seed": 0, "decoder": None, "plan_hash": "q"},
    ]
    found = [Origin(range(2), plans[0]), Origin(range(2, 5), plans[1])]
    dataset = dataset_of(found, ["content"])
    assert origins(dataset) == found
    assert dataset["seed"] == 0 and "batch" not in dataset and dataset["num_shards"] == 5


def test_the_plan_hash_follows_everything_that_is_said():
    def plan_hash(content="c", shards=2, **changes):
        return dataset_of([Origin(range(shards), {**BASE, "plan_hash": "p"})] * 2, [content], **changes)["plan_hash"]

    assert plan_hash() == plan_hash()
    assert len({plan_hash(), plan_hash("d"), plan_hash(shards=3), plan_hash(split="train")}) == 4


@pytest.mark.parametrize(
    "entries",
    [None, [], {}, [{}], [{"num_shards": 3, "plan_hash": "p"}], [{"num_shards": 4}], [{"num_shards": "4"}], [4]],
)
def test_a_list_of_plans_that_does_not_fit_is_refused(entries):
    with pytest.raises(ValueError, match="merged_from to tell the plans of 4 shards"):
        origins({"num_shards": 4, "merged_from": entries, **BASE})
