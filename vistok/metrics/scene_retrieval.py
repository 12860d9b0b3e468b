"""Captions of rendered scenes found by their pictures, and the other way round, by a tokenizer that embeds both.

A picture is embedded before quantization ("embeddings") and once more from its ids alone ("codes"), so that the gap
between both is what the codes lost. The model offers embed_images, embed_codes and embed_texts, as `seed_text` does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vistok.data.scenes.captions import caption
from vistok.data.scenes.render import render
from vistok.metrics.codebook_health import CodebookHealth
from vistok.metrics.retrieval import Retrieval, retrieval
from vistok.tokens import TokenTensor


@dataclass(frozen=True)
class SceneRetrieval:
    """embeddings, codes: recall from either; health: of the codebook over all tokens; ceiling: the best possible R@1.

    The ceiling is below 1 where scenes share a caption: the share of different ones.
    """

    embeddings: Retrieval
    codes: Retrieval
    health: CodebookHealth
    ceiling: float

    def report(self) -> dict[str, Any]:
        """Plain data for JSON; kept: R@1 from codes over that from embeddings, image to text."""
        before, after = (found.image_to_text[1] for found in (self.embeddings, self.codes))
        return {
            "scenes": self.embeddings.pairs,
            "ceiling": self.ceiling,
            "embeddings": self.embeddings.report(),
            "codes": self.codes.report(),
            "kept": after / before if before else None,
            "codebook": self.health.report(),
        }


@torch.inference_mode()
def scene_retrieval(
    model: Any, seeds: Sequence[int], ks: Sequence[int] = (1, 5, 10), batch: int = 50
) -> SceneRetrieval:
    """Render the scenes of `seeds` at the model's size and look for each among all of them.

    ks: of the recall, 1 always among them. batch: scenes encoded at once. Raises: ValueError naming a model that
    embeds no captions or has several codebooks, or if there are no seeds.
    """
    if not hasattr(model, "embed_texts") or len(model.codebook_sizes) != 1:
        raise ValueError(
            f"scene_retrieval: expected a tokenizer with one codebook that embeds captions, as seed_nano, got "
            f"{getattr(model, 'name', type(model).__name__)}"
        )
    if not seeds:
        raise ValueError("scene_retrieval: expected at least one scene, got none")
    health = CodebookHealth.empty(model.codebook_sizes[0])
    before, rebuilt, captions = [], [], []
    for start in range(0, len(seeds), batch):
        scenes = [render(seed, model.image_size[0]) for seed in seeds[start : start + batch]]
        images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2).float() / 255
        tokens = model.encode(images)
        health.add(tokens.indices)
        before.append(model.embed_images(images))
        # The ids alone: what a language model would see.
        rebuilt.append(model.embed_codes(TokenTensor(spec=tokens.spec, indices=tokens.indices)))
        captions += [caption(scene.layout) for scene in scenes]
    texts = torch.cat([model.embed_texts(captions[start : start + batch]) for start in range(0, len(captions), batch)])
    wanted = sorted({1, *ks})
    embeddings, codes = (retrieval(torch.cat(rows), texts, wanted) for rows in (before, rebuilt))
    return SceneRetrieval(embeddings, codes, health, len(set(captions)) / len(captions))
