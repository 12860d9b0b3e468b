"""Rendered scenes with packed questions as batches of ETT, and how well a tuned model answers and reconstructs them."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vistok.data.scenes.captions import caption
from vistok.data.scenes.layout import make_layout
from vistok.data.scenes.questions import KINDS
from vistok.lvlm.micro import MicroSettings
from vistok.lvlm.packed_questions import packed_positions
from vistok.metrics.reconstruction import psnr
from vistok.train.ett_model import Batch, EndToEnd
from vistok.train.scene_batches import ASKED, IGNORED, SLOT_LENGTH, SceneBatches

_BEFORE = ("<s>", "user", ":")


class Scenes:
    """Batches of scenes by number: the questions in one sequence for each scene, no question seeing another.

    The language model must be one with the words of micro_lvlm and `vistok_packed_questions` as its attention.
    """

    def __init__(
        self, side: int, patch: int, items: int, questions: int, split: str = "train", *, captions: bool = False
    ) -> None:
        """side, patch: pixels of a picture and of a visual token. captions: also give prompts to make pictures from."""
        self.tokens = (side // patch) ** 2
        self.items, self.questions, self.captions = items, questions, captions
        self.source = SceneBatches(MicroSettings(side=side, patch=patch), items, questions, split)

    def batch(self, number: int) -> Batch:
        """The batch of that number."""
        return self.asked(number)[0]

    def asked(self, number: int) -> tuple[Batch, Tensor]:
        """The batch of that number and the kinds [B, slots] of its questions, places in ASKED."""
        found = self.source.batch(number)
        before = torch.tensor([self.source.words[word] for word in _BEFORE])
        prefix = len(before) + self.tokens
        extra = {
            "position_ids": packed_positions(self.items, prefix, self.questions, SLOT_LENGTH),
            "packing": (prefix, SLOT_LENGTH),
            "use_cache": False,
        }
        # There a label stands under the word that predicts it, with Hugging Face under the predicted one.
        labels = torch.nn.functional.pad(found.labels, (1, 0), value=IGNORED)[:, :-1]
        prompt, mask = self._prompts(number) if self.captions else (None, None)
        return Batch((found.pixels + 1) / 2, found.ids, labels, before, extra, prompt, mask), found.kinds

    def _prompts(self, number: int) -> tuple[Tensor, Tensor]:
        seeds = self.source.seeds[number * self.items : (number + 1) * self.items]
        words = self.source.words
        texts = [f"user : {caption(make_layout(seed))} assistant :".split() for seed in seeds]
        rows = [torch.tensor([words["<s>"], *(words[word] for word in text)]) for text in texts]
        ids = pad_sequence(rows, batch_first=True, padding_value=words["<pad>"], padding_side="left")
        return ids, (ids != words["<pad>"]).to(torch.int64)


@dataclass(frozen=True)
class Outcome:
    """accuracy: mean over the kinds of questions; by_kind; answer_loss: L_cap; psnr: mean in dB; usage: share of the
    codes that the scenes took."""

    accuracy: float
    by_kind: dict[str, float]
    answer_loss: float
    psnr: float
    usage: float


@torch.no_grad()
def assess(model: EndToEnd, scenes: Scenes, batches: int) -> Outcome:
    """First words of the answers, exact match, and reconstructions, over the first batches of `scenes`."""
    modes = {name: part.training for name, part in model.parts.items()}
    model.eval()
    right, asked = torch.zeros(len(ASKED)), torch.zeros(len(ASKED))
    losses: list[float] = []
    decibels: list[Tensor] = []
    used: list[Tensor] = []
    for number in range(batches):
        batch, kinds = scenes.asked(number)
        tokens = model.tokenizer.encode(batch.images)
        decibels.append(psnr(model.tokenizer.decode(tokens), batch.images).reshape(-1))
        used.append(tokens.indices.flatten())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model.answer(batch, tokens.embeds)
        losses.append(float(out.loss))
        words = len(batch.labels[0])
        said, labels = out.logits[:, -words - 1 : -1].argmax(-1), batch.labels
        first = (labels != IGNORED) & (torch.nn.functional.pad(labels, (1, 0), value=IGNORED)[:, :-1] == IGNORED)
        hits = (said == labels)[first].float()
        right.index_add_(0, kinds.flatten(), hits)
        asked.index_add_(0, kinds.flatten(), torch.ones_like(hits))
    for name, part in model.parts.items():
        part.train(modes[name])
    shares = (right / asked.clamp(min=1)).tolist()
    by_kind = dict(zip(ASKED, shares, strict=True))
    sizes = model.tokenizer.codebook_sizes
    return Outcome(
        accuracy=sum(by_kind[kind] for kind in KINDS) / len(KINDS),
        by_kind=by_kind,
        answer_loss=sum(losses) / len(losses),
        psnr=float(torch.cat(decibels).mean()),
        usage=len(torch.cat(used).unique()) / sizes[0],
    )
