"""Words and visual codes in one space, from captions paired with images: what goes together with which words.

PPMI(t, w) = max(0, log P(t, w) / (P(t) P(w))) over pairs, where a pair holds a token t (a word or a code) and a word w
or does not (Levy & Goldberg, NeurIPS 2014). A code is described by the words it is seen with, a word by the words it
is said with, so both are vectors over the same words. T tokens, W words that stand as contexts.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


def association(pairs: Iterable[tuple[Tensor, Tensor]], words: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    """Features of words and of codes over `words`: [W, W] and [codes, W] float64, 0 for what is never seen.

    pairs: ids of a caption [n] int64 and local codes of its image [N] int64; words [W]: ids that count, no punctuation.
    Raises: ValueError if there are no pairs or a code is out of range.
    """
    place = torch.full((int(words.max()) + 1,), -1, dtype=torch.int64, device=words.device)
    place[words] = torch.arange(len(words), device=words.device)
    captions, images = [], []
    for caption, image in pairs:
        if image.numel() and not 0 <= int(image.min()) <= int(image.max()) < codes:
            raise ValueError(
                f"association: expected codes in 0..{codes - 1}, got {int(image.min())}..{int(image.max())}"
            )
        caption, image = caption.to(words.device), image.to(words.device)
        said = place[caption[caption < len(place)]]
        captions.append(torch.bincount(said[said >= 0], minlength=len(words)).clamp(max=1))
        images.append(torch.bincount(image.flatten(), minlength=codes).clamp(max=1))
    if not captions:
        raise ValueError("association: expected captions paired with images, got none")
    said, shown = torch.stack(captions).double(), torch.stack(images).double()
    return _ppmi(said, said), _ppmi(shown, said)


def _ppmi(tokens: Tensor, words: Tensor) -> Tensor:
    """tokens [P, T], words [P, W] 0 or 1 for each of P pairs -> [T, W]."""
    together = tokens.T @ words / len(words)
    apart = tokens.mean(0)[:, None] * words.mean(0)
    return (together / apart.clamp(min=1e-12)).clamp(min=1).log()
