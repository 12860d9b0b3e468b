"""Conclusions from made-up depth tokens, as a loss: which of some things has the largest or the smallest code.

Names and depths are drawn, no scene is behind them and no picture is run. B questions, T ids, V scores.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.data.perception.scene_points import SCENE_RULES, made_up_points
from vistok.lvlm.point_questions import KINDS, PointQuestion
from vistok.train.perception_adapter import PerceptionAdapter


class MadeUpConclusions:
    """Questions with chains of drawn codes for an adapter. Positions leave room for the picture's visual tokens.

    copied: weight of the loss on words of the chain before the conclusion, which follow the order of the question.
    """

    def __init__(self, host: PerceptionAdapter, *, copied: float, bf16: bool) -> None:
        self.host, self.copied, self.bf16 = host, copied, bf16
        vision = host.model.config.vision_config
        self._visual_tokens = (vision.image_size // vision.patch_size) ** 2

    def drawn(
        self, rng: np.random.Generator, count: int, points: int, contrast: float = SCENE_RULES.contrast
    ) -> list[PointQuestion]:
        """`count` questions about so many things each, nearest and farthest equally likely."""
        made = [made_up_points(rng, points, contrast) for _ in range(count)]
        return [self.host.texts.about(markers, KINDS[rng.integers(len(KINDS))]) for markers in made]

    def loss(self, questions: Sequence[PointQuestion]) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy [] over conclusions, `copied` times that over other words of chains; right names [B] bool.

        Codes have no loss: nothing says what they are. questions: about equally many things, so equally long.
        """
        ids, (chain, conclusion) = self.ids(questions)
        logits, labels = self.logits(ids), ids[:, 1:]
        each = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
        places = torch.arange(labels.shape[1])
        codes = self.host.attachment.maps[self.host.family.name].is_code(labels)
        concluding = (places >= conclusion - 1).expand_as(labels)
        copied = (places >= chain - 1) & ~concluding & ~codes
        # The word that was asked for comes first, the end last; the name is what is between.
        right = (logits[:, conclusion:-2].argmax(-1) == ids[:, conclusion + 1 : -1]).all(1)
        return each[concluding].mean() + self.copied * each[copied].mean(), right

    def ids(self, questions: Sequence[PointQuestion]) -> tuple[Tensor, tuple[int, int]]:
        """Ids [B, T] of questions with chains, and where chain and conclusion begin."""
        tokenizer = self.host.processor.tokenizer
        rows = [
            [
                tokenizer(text, add_special_tokens=False).input_ids
                for text in (
                    f"{question.text} assistant :",
                    question.chain.removesuffix(f" {question.conclusion}"),
                    f"{question.conclusion} {tokenizer.eos_token}",
                )
            ]
            for question in questions
        ]
        asked, chain, _ = map(len, rows[0])
        return torch.tensor([[i for part in row for i in part] for row in rows]), (asked, asked + chain)

    def logits(self, ids: Tensor) -> Tensor:
        """[B, T, V] for ids [B, T], each row behind the lead and the places of visual tokens that are not there."""
        host, (count, length) = self.host, ids.shape
        embed, prefix = host.model.get_input_embeddings(), len(host.lead)
        own = torch.arange(length).repeat(count) + prefix + self._visual_tokens
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
            hidden = host.model.model.language_model(
                inputs_embeds=torch.cat((embed(host.lead), embed(ids).flatten(0, 1)))[None],
                position_ids=torch.cat((torch.arange(prefix), own))[None],
                packing=(prefix, length),
                use_cache=False,
            ).last_hidden_state[0, prefix:]
        logits: Tensor = host.model.lm_head(hidden.float()).unflatten(0, (count, length))
        return logits
