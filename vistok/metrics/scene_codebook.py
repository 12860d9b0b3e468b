"""The codes of a tokenizer as concepts, on rendered scenes whose things are known or on pictures without labels.

Tokens of a square grid: an item is a patch that shows a thing, its vector the patch's pixels, its labels the thing's
colour, shape and texture; of pictures without labels every patch is one. Other tokens, such as the 32 of `seed_nano`:
an item is a picture, once for each place in the sequence, its vector the picture's pixels, its labels those of the
nearest thing and the number of things; numbers are means over places. Pixels are averaged to at most 8 x 8 an item.
Several codebooks are taken together ("joint") and one by one. Where a code stands for hardly more than one item, as of
vq_nano's 64,000, nothing can be said of it: "merged" are the same codes in 64 clusters of their vectors by k-means.
B pictures, N tokens, Q codebooks, n items.

Measured on 96 x 96 test scenes (`vistok eval codebook NAME --scenes 300`; seed_nano: 1000), "merged" to 64 clusters;
labels: plug-in bits less shuffled, AMI in brackets. H(label): 2.6 for colour and shape, 1.6 for texture, 3.0 for count.

    tokenizer           I(X;C)  variance left  colour         shape           texture         count
    vq_nano   codes     5.96    68.9 %         0.747 (0.178)  0.044 (0.012)   0.017 (0.005)   -
              k-means   5.70    49.5 %         1.224 (0.303)  0.139 (0.039)   0.034 (0.012)   -
    ett_nano  codes     5.67    82.3 %         0.394 (0.098)  0.015 (0.005)   0.021 (0.006)   -
              k-means   5.82    49.2 %         1.117 (0.275)  0.112 (0.033)   0.030 (0.011)   -
    seed_nano codes     5.90    93.7 %         0.374 (0.094)  0.393 (0.099)   0.191 (0.052)   0.967 (0.236)
              k-means   4.78    35.9 %         0.055 (0.018)  -0.013 (-0.003)  -0.013 (-0.004)  0.020 (0.005)

Codes of patches tell less of their things than clusters of the very pixels they were measured on do; one of SEED's
codes leaves nearly all pixel variance and tells of pictures what clusters of their pixels do not. ett_nano unmerged,
688 codes: 8.78 bits, 60.8 % left, colour 0.605 (0.121), against 30.6 % and 1.182 (0.236) of k-means. Plug-in alone
would have said 2.24 bits of colour for vq_nano's 6,901 codes of 9,656 patches; with labels shuffled 2.07 are there.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from vistok.data.scenes.layout import COLORS, SHAPES, TEXTURES
from vistok.data.scenes.patch_truth import PatchTruth, patch_truth
from vistok.data.scenes.render import Scene, render
from vistok.metrics.codebook_meaning import Comparison, compare_clusters, mean_comparison
from vistok.metrics.k_means import k_means
from vistok.tokens import TokenTensor

_LOOKS = {"color": COLORS, "shape": SHAPES, "texture": TEXTURES}
_PIXELS = 8


@dataclass(frozen=True)
class CodebookMeaning:
    """rows: "joint", "merged", and "codebook 0" and so on where there are several; merged: into how many clusters at
    most; unit: "patch" or "picture" that a token is taken for; places: of tokens that means are over."""

    tokenizer: str
    unit: str
    places: int
    merged: int
    beta: float
    rows: dict[str, Comparison]


@dataclass(frozen=True)
class _Items:
    """codes [n, Q], embeds [n, E] or None, vectors [n, D], labels kind -> [n], groups [n], place [n] int64; unit as in
    `CodebookMeaning`."""

    codes: Tensor
    embeds: Tensor | None
    vectors: Tensor
    labels: dict[str, Tensor]
    groups: Tensor
    place: Tensor
    unit: str


@torch.inference_mode()
def scene_codebook(
    model: Any,
    seeds: Sequence[int],
    *,
    side: int = 96,
    merged: int = 64,
    beta: float = 1.0,
    draws: int = 20,
    batch: int = 50,
) -> CodebookMeaning:
    """Of the scenes of `seeds`, rendered at the model's own size where it has one, else at `side` pixels.

    merged: clusters to merge codes into. beta: bits that all of the variance is worth. draws: shuffles of the labels.
    Raises: ValueError for a tokenizer whose tokens are continuous, no scenes, or a side that its grid does not divide.
    """
    if not seeds:
        raise ValueError("scene_codebook: expected at least one scene, got none")
    side = own_side(model) or side
    found = []
    for start in range(0, len(seeds), batch):
        scenes = [render(seed, side) for seed in seeds[start : start + batch]]
        images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2).float() / 255
        tokens = checked(model, model.encode(images))
        found.append(_of_scenes(tokens, images, scenes, start))
    return _analyse(model, found, merged, beta, draws)


@torch.inference_mode()
def picture_codebook(model: Any, images: Iterable[Tensor], *, merged: int = 64, beta: float = 1.0) -> CodebookMeaning:
    """Rate and distortion alone, of pictures [3, H, W] in [0, 1] without labels.

    Raises: ValueError for a tokenizer whose tokens are continuous, no pictures, or sides that its grid does not divide.
    """
    found = []
    for number, image in enumerate(images):
        tokens = checked(model, model.encode(image[None]))
        found.append(_of_pictures(tokens, image[None], {}, number))
    if not found:
        raise ValueError("picture_codebook: expected at least one picture, got none")
    return _analyse(model, found, merged, beta, 1)


def checked(model: Any, tokens: TokenTensor) -> TokenTensor:
    """The tokens. Raises: ValueError if they have no codes."""
    if not tokens.spec.codebook_sizes or tokens.indices is None:
        name = getattr(model, "name", type(model).__name__)
        raise ValueError(
            f"codebook: expected a tokenizer with codes, such as vq_nano, got {name}, whose tokens are continuous; "
            f"`vistok eval probe` says what is in those"
        )
    return tokens


def in_grid(tokens: TokenTensor) -> bool:
    """Whether every token but a prefix is one patch of a grid, row by row."""
    spec = tokens.spec
    cells = spec.grid[0] * spec.grid[1] if len(spec.grid) == 2 else -1
    return spec.order == "raster" and tokens.num_slots - spec.prefix == cells and tokens.lengths is None


def _of_scenes(tokens: TokenTensor, images: Tensor, scenes: Sequence[Scene], first: int) -> _Items:
    things = [scene.layout.things for scene in scenes]
    if not in_grid(tokens):
        nearest: dict[str, Tensor] = {
            name: torch.tensor([values.index(getattr(each[0], name)) for each in things])
            for name, values in _LOOKS.items()
        }
        return _of_pictures(tokens, images, nearest | {"count": torch.tensor([len(each) for each in things])}, first)
    rows, columns = tokens.spec.grid
    if rows != columns or images.shape[-1] % rows:
        raise ValueError(
            f"codebook: expected a side that {rows} rows of tokens divide into square patches, got "
            f"{images.shape[-1]} pixels and a grid {tokens.spec.grid}; choose another --side"
        )
    truth = patch_truth(scenes, images.shape[-1] // rows)
    shown = truth.shown
    items = _patches(tokens, images)
    return _Items(
        items.codes[shown.flatten()],
        None if items.embeds is None else items.embeds[shown.flatten()],
        items.vectors[shown.flatten()],
        {name: truth.classes[name][shown] for name in _LOOKS},
        _thing_of(truth, first)[shown],
        items.place[shown.flatten()],
        items.unit,
    )


def _thing_of(truth: PatchTruth, first: int) -> Tensor:
    """The same number for all patches of one thing of one scene, [B, N] int64."""
    places = truth.numbers[..., 4:6].double()  # of a thing's centre, which no two things of a scene share
    scene = torch.arange(len(places)).double()[:, None, None].expand(*places.shape[:2], 1)
    _, own = torch.cat([scene, places], -1).flatten(0, 1).unique(dim=0, return_inverse=True)
    things: Tensor = own.reshape(places.shape[:2]) + first * 1000
    return things


def _of_pictures(tokens: TokenTensor, images: Tensor, labels: Mapping[str, Tensor], first: int) -> _Items:
    if in_grid(tokens):
        return _patches(tokens, images)
    assert tokens.indices is not None
    mask = tokens.mask
    ids = tokens.indices if tokens.indices.ndim == 3 else tokens.indices[..., None]
    slots = torch.arange(tokens.num_slots).expand(len(tokens), -1) if tokens.source is None else tokens.source
    picture = torch.arange(len(images))[:, None].expand_as(mask)[mask]
    small = adaptive_avg_pool2d(images, _PIXELS).flatten(1)
    own = {name: values[picture] for name, values in labels.items()}
    embeds = None if tokens.embeds is None else tokens.embeds[mask].float()
    return _Items(ids[mask], embeds, small[picture], own, picture + first, slots[mask], "picture")


def _patches(tokens: TokenTensor, images: Tensor) -> _Items:
    """Every patch of the pictures, one place for all."""
    assert tokens.indices is not None
    rows, columns = tokens.spec.grid
    height, width = images.shape[2:]
    if height % rows or width % columns:
        raise ValueError(
            f"codebook: expected pictures that a grid {tokens.spec.grid} divides, got {height} x {width} pixels"
        )
    ids = tokens.indices[:, tokens.spec.prefix :]
    ids = ids if ids.ndim == 3 else ids[..., None]
    cut = images.unflatten(3, (columns, -1)).unflatten(2, (rows, -1)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    side = min(_PIXELS, cut.shape[-1], cut.shape[-2])
    number = torch.arange(len(cut))
    embeds = None if tokens.embeds is None else tokens.embeds[:, tokens.spec.prefix :].flatten(0, 1).float()
    pixels = adaptive_avg_pool2d(cut, side).flatten(1)
    return _Items(ids.flatten(0, 1), embeds, pixels, {}, number, torch.zeros_like(number), "patch")


def _analyse(model: Any, found: Sequence[_Items], merged: int, beta: float, draws: int) -> CodebookMeaning:
    embeds = [each.embeds for each in found if each.embeds is not None]
    items = _Items(
        torch.cat([each.codes for each in found]),
        torch.cat(embeds) if embeds else None,
        torch.cat([each.vectors for each in found]),
        {name: torch.cat([each.labels[name] for each in found]) for name in found[0].labels},
        torch.cat([each.groups for each in found]),
        torch.cat([each.place for each in found]),
        found[0].unit,
    )
    places = items.place.unique()
    rows: dict[str, list[Comparison]] = {}
    for here in (items.place == place for place in places):
        labels = {kind: values[here] for kind, values in items.labels.items()}
        for name, codes in _partitions(items, here, merged):
            row = compare_clusters(codes, items.vectors[here], labels, items.groups[here], beta=beta, draws=draws)
            rows.setdefault(name, []).append(row)
    name = getattr(model, "name", type(model).__name__)
    means = {partition: mean_comparison(each) for partition, each in rows.items()}
    return CodebookMeaning(name, found[0].unit, len(places), merged, beta, means)


def _partitions(items: _Items, here: Tensor, merged: int) -> Iterator[tuple[str, Tensor]]:
    """Of the items here: all codebooks together, merged by their vectors, and each alone where there are several."""
    codes = items.codes[here]
    joint = codes.unique(dim=0, return_inverse=True)[1]
    yield "joint", joint
    if items.embeds is not None:
        yield "merged", _merged(joint, items.embeds[here], merged)
    if codes.shape[1] > 1:
        yield from ((f"codebook {number}", column) for number, column in enumerate(codes.unbind(1)))


def _merged(joint: Tensor, embeds: Tensor, clusters: int) -> Tensor:
    """The cluster of each item's code, k-means over the vectors of the codes there are, each counted once."""
    count = int(joint.max()) + 1
    vectors = embeds.new_zeros(count, embeds.shape[1]).index_copy_(0, joint, embeds)
    return k_means(vectors, min(clusters, count))[joint]


def own_side(model: Any) -> int | None:
    """The only side at which a tokenizer takes pictures, None for any."""
    size: tuple[int, ...] = model.spec.image_size
    return size[0] if size else None
