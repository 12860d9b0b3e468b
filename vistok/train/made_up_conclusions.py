"""Conclusions from made-up spans, as a loss: which of some things has the largest code, or how many spans there are.

Names and codes are drawn, no scene is behind them and no picture is run. B questions, T ids, V scores.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.lvlm.perception_texts import PerceptionQuestion
from vistok.train.perception_adapter import PerceptionAdapter


class MadeUpConclusions:
    """Questions with chains of drawn codes for an adapter. Positions leave room for the picture's visual tokens.

    copied: weight of the loss on words of the chain before the conclusion, which follow the order of the question.
    """

    def __init__(self, host: PerceptionAdapter, *, copied: float, bf16: bool) -> None:
        self.host, self.copied, self.bf16 = host, copied, bf16
        vision = host.model.config.vision_config
        self._visual_tokens = (vision.image_size // vision.patch_size) ** 2

    def loss(self, questions: Sequence[PerceptionQuestion]) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy [] over conclusions, `copied` times that over other words of chains; right answers [B].

        Codes have no loss: nothing says what they are. Right answers are bool.
        """
        ids, chains, conclusions, ends = self.ids(questions)
        logits, labels = self.logits(ids), ids[:, 1:]
        each = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
        places = torch.arange(labels.shape[1])
        codes = self.host.attachment.maps[self.host.family.name].is_code(labels)
        said = (places >= chains[:, None] - 1) & (places < ends[:, None] - 1)
        concluding = said & (places >= conclusions[:, None] - 1)
        copied = said & ~concluding & ~codes
        # The end comes last; the answer is what is before it.
        answers = (places < ends[:, None] - 2) & (places >= ends[:, None] - 2 - self.host.texts.answer_words)
        right = ((logits[:, :-1].argmax(-1) == labels) | ~answers).all(1)
        return each[concluding].mean() + self.copied * each[copied].mean(), right

    def ids(self, questions: Sequence[PerceptionQuestion]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ids [B, T] of questions with chains, padded on the right; where chain, conclusion and padding begin, [B]."""
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
        lengths = torch.tensor([[len(part) for part in row] for row in rows]).cumsum(1)
        longest, fill = int(lengths[:, -1].max()), int(tokenizer.pad_token_id)
        flat = [[i for part in row for i in part] for row in rows]
        ids = torch.tensor([row + [fill] * (longest - len(row)) for row in flat])
        chains, conclusions, ends = lengths.unbind(1)
        return ids, chains, conclusions, ends

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
