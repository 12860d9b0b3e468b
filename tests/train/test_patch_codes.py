"""Codes of patches: what is decoded is the nearest picture that the codebook can make."""

import torch

from vistok.train.patch_codes import PatchCodes


def test_pictures_made_of_few_patches_come_back_exactly(generator):
    tiles = torch.rand(6, 3, 8, 8, generator=generator)
    chosen = torch.randint(6, (20, 2, 2), generator=generator)
    images = tiles[chosen].permute(0, 3, 1, 4, 2, 5).reshape(20, 3, 16, 16)
    made = PatchCodes.learn(images, codes=12, patch=8, rounds=5)
    tokens = made.encode(images).check()
    assert tokens.spec.grid == (2, 2) and tokens.spec.codebook_sizes == (12,)
    assert torch.allclose(made.decode(tokens.indices), images, atol=1e-3)


def test_learning_is_repeatable_and_leaves_torchs_generator_alone(generator):
    images, state = torch.rand(30, 3, 16, 16, generator=generator), torch.get_rng_state()
    books = [PatchCodes.learn(images, codes=8, patch=8, rounds=2, seed=4).codebook for _ in range(2)]
    assert torch.equal(*books) and torch.equal(state, torch.get_rng_state())
