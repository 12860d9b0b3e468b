"""TokenTensor through DataLoader workers, pickle, torch.save and pytree."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, default_collate

from vistok.tokens import Selection, TokenSpec, TokenTensor

SPEC = TokenSpec("toy", dim=2, codebook_sizes=(100,), grid=(2, 3), patch=8, image_size=(16, 24))


def item(number: int) -> TokenTensor:
    """`number` tokens, ids and embeds that tell item and position apart."""
    ids = torch.arange(number) + 10 * number
    return TokenTensor(SPEC, embeds=ids[None, :, None].expand(1, -1, 2).float(), indices=ids[None])


class Samples(Dataset[Any]):
    """Items of 0..6 tokens, alone or as part of a nested sample."""

    def __init__(self, nested: bool) -> None:
        self.nested = nested

    def __len__(self) -> int:
        return 7

    def __getitem__(self, number: int) -> Any:
        if not self.nested:
            return item(number)
        return {"label": number, "views": {"image": item(number), "pair": (item(6 - number), number)}}


def assert_items(batch: TokenTensor, numbers: list[int]) -> None:
    assert batch.check().valid_lengths.tolist() == numbers
    assert batch.spec == SPEC
    assert batch.num_slots == max(numbers)
    for one, number in zip(batch, numbers, strict=True):
        assert one.indices is not None and one.indices.tolist() == item(number).indices.tolist()  # type: ignore[union-attr]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_collates_ragged_items(workers: int) -> None:
    batches = list(DataLoader(Samples(nested=False), batch_size=3, num_workers=workers))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert_items(batches[0], [0, 1, 2])
    assert_items(batches[2], [6])


def test_a_data_loader_collates_token_tensors_inside_dicts_and_tuples() -> None:
    batches = list(DataLoader(Samples(nested=True), batch_size=4, num_workers=2))
    assert batches[0]["label"].tolist() == [0, 1, 2, 3]
    assert_items(batches[0]["views"]["image"], [0, 1, 2, 3])
    tokens, numbers = batches[1]["views"]["pair"]
    assert_items(tokens, [2, 1, 0])
    assert numbers.tolist() == [4, 5, 6]


def test_collating_different_specs_says_to_bucket() -> None:
    with pytest.raises(ValueError, match="bucket by image size"):
        default_collate([item(1), item(1).replace(spec=TokenSpec("other"))])


def assert_equal(left: TokenTensor, right: TokenTensor) -> None:
    assert left.spec == right.spec and hash(left.spec) == hash(right.spec)
    assert left.tensors().keys() == right.tensors().keys()
    for name, value in left.tensors().items():
        assert torch.equal(value, right.tensors()[name])


@pytest.fixture
def tokens() -> TokenTensor:
    return TokenTensor.cat([item(2), item(4)])


def test_saved_tokens_load_with_weights_only(tokens: TokenTensor, tmp_path: Path) -> None:
    torch.save({"batch": tokens}, tmp_path / "tokens.pt")
    assert_equal(torch.load(tmp_path / "tokens.pt", weights_only=True)["batch"], tokens)


def test_tokens_survive_pickle_and_deepcopy(tokens: TokenTensor) -> None:
    assert_equal(pickle.loads(pickle.dumps(tokens)), tokens)
    assert_equal(copy.deepcopy(tokens), tokens)


def test_flattening_leaves_tensors_only_and_a_hashable_context(tokens: TokenTensor) -> None:
    leaves, structure = pytree.tree_flatten(tokens)
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)
    assert len(leaves) == 3
    hash(structure.context)
    assert structure == pytree.tree_flatten(tokens.map(torch.zeros_like))[1]
    assert structure != pytree.tree_flatten(tokens.replace(indices=None))[1]
    assert_equal(pytree.tree_unflatten(leaves, structure), tokens)


def test_flattening_with_paths_names_the_fields(tokens: TokenTensor) -> None:
    paths = [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path({"x": tokens})[0]]
    assert paths == ["['x'].embeds", "['x'].indices", "['x'].lengths"]


def test_a_structure_survives_json_with_its_tuples(tokens: TokenTensor) -> None:
    leaves, structure = pytree.tree_flatten((tokens, Selection(torch.zeros(2, 1).long())))
    loaded = pytree.treespec_loads(pytree.treespec_dumps(structure))
    assert loaded == structure
    assert_equal(pytree.tree_unflatten(leaves, loaded)[0], tokens)


def test_tree_map_reaches_every_tensor(tokens: TokenTensor) -> None:
    shifted = pytree.tree_map(lambda value: value + 1, {"x": [tokens]})["x"][0]
    assert shifted.spec == SPEC
    for name, value in tokens.tensors().items():
        assert torch.equal(getattr(shifted, name), value + 1)


def test_vmap_maps_over_the_items(tokens: TokenTensor) -> None:
    def norm(one: TokenTensor) -> torch.Tensor:
        assert one.embeds is not None and one.embeds.shape == (4, 2)
        return one.embeds.square().sum()

    assert tokens.embeds is not None
    assert torch.equal(torch.vmap(norm)(tokens), tokens.embeds.square().sum((1, 2)))


def test_vmap_maps_whole_batches_through_select(tokens: TokenTensor) -> None:
    stacked = pytree.tree_map(lambda value: torch.stack([value, value + 1]), tokens.replace(lengths=None))
    index = torch.tensor([[[0, 1], [2, 3]], [[3, 0], [1, 1]]])
    picked = torch.vmap(lambda t, i: t.select(Selection(i)))(stacked, index)
    for number in range(2):
        alone = pytree.tree_map(lambda value, n=number: value[n], stacked).select(Selection(index[number]))
        assert torch.equal(picked.indices[number], alone.indices)
