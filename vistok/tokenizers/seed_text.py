"""SEED with what its first stage trains beside the tokenizer: a text branch and projections (arXiv:2307.08041, 3.1).

v = norm(vision_proj(q_last)) of a picture and t = norm(text_proj(h_CLS)) of a caption lie in one space. Of codes,
v = norm(vision_proj(r_last)), r = blocks(u + pos_embed) the causal queries rebuilt from them (section 3.2): of the
queries only the last has seen all. Words come from a closed list, which is part of the settings.
B items, T words, Q queries, W width, P width of the projections.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from vistok.registry import register
from vistok.tokenizers.seed import Seed
from vistok.tokens import TokenTensor

PAD, CLS = "<pad>", "<cls>"


@register
class SeedText(Seed, library_name="vistok", license="apache-2.0"):
    """SEED's tokenizer that also embeds captions, pictures and codes in one space."""

    # `forward` is stage II; the text branch, the projections and the temperature learn in stage I, from captions.
    cannot: frozenset[str] = Seed.cannot | {"backward"}

    def __init__(
        self,
        *,
        words: Sequence[str] = (),
        text_positions: int = 96,
        projection_dim: int = 256,
        temperature: float = 0.07,
        qformer: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        """words: all that captions may hold, without padding and start. text_positions: longest caption, one more.

        projection_dim: P. temperature: the learned one's start. qformer, settings: of `Seed`.
        Raises: ValueError for words that come twice, or a temperature that is not positive.
        """
        if len(set(words)) != len(words) or any(word in (PAD, CLS) or word.split() != [word] for word in words):
            raise ValueError(
                f"seed_text: expected words without spaces, each once, none of them {PAD} or {CLS}, got {list(words)}"
            )
        if not temperature > 0:
            raise ValueError(f"seed_text: expected a temperature above 0, got {temperature}")
        branch = {"vocabulary": len(words) + 2, "positions": text_positions}
        super().__init__(qformer={**(qformer or {}), **branch}, **settings)
        self.name = "seed_text"
        self._ids = {word: number for number, word in enumerate((PAD, CLS, *words))}
        width = self.Qformer.width
        self.vision_proj = nn.Linear(width, projection_dim)
        self.text_proj = nn.Linear(width, projection_dim)
        self.temp = nn.Parameter(torch.tensor(float(temperature)))

    def embed_images(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in [0, 1] of `image_size` -> v [B, P] float32 of length 1, before quantization."""
        return self.embed_queries(self.causal_queries(self.features(images)))

    def embed_codes(self, tokens: TokenTensor) -> Tensor:
        """All Q tokens of each picture -> v [B, P] float32 of length 1, of the queries rebuilt from the codes.

        Raises: ValueError if tokens are missing.
        """
        return self.embed_queries(self.blocks(self.widened(self.codes(tokens)) + self.pos_embed))

    def embed_queries(self, queries: Tensor) -> Tensor:
        """q [B, Q, W], or what was rebuilt of it -> v [B, P] float32 of length 1; the last query counts."""
        return normalize(self.vision_proj(queries[:, -1]).float(), dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """B captions, words between spaces -> t [B, P] float32 of length 1. Raises: as `word_ids`."""
        ids, mask = self.word_ids(texts)
        return normalize(self.text_proj(self.Qformer(text=ids, text_mask=mask)[:, 0]).float(), dim=-1)

    def word_ids(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B captions -> ids [B, T] int64, a start and then the words, padded; mask [B, T] bool, where there are any.

        Raises: ValueError naming an unknown word, or a caption that is too long.
        """
        if not texts:
            raise ValueError(f"{self.name}: expected at least one caption, got none")
        most = self.Qformer.positions - 1
        rows = []
        for text in texts:
            words = text.split()
            if unknown := sorted(set(words) - self._ids.keys()):
                raise ValueError(
                    f"{self.name}: expected words of {', '.join(list(self._ids)[2:])}; got {', '.join(unknown)} in "
                    f"{text!r}"
                )
            if len(words) > most:
                raise ValueError(f"{self.name}: expected at most {most} words, got {len(words)}: {text!r}")
            rows.append(torch.tensor([self._ids[word] for word in (CLS, *words)]))
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self._ids[PAD])
        device = self.query_tokens.device
        return ids.to(device), (ids != self._ids[PAD]).to(device)
