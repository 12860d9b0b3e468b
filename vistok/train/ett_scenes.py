"""Rendered scenes with packed questions as batches of ETT, and how well a tuned model answers and reconstructs them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vistok.data.scenes.captions import caption
from vistok.data.scenes.layout import Layout, make_layout
from vistok.data.scenes.questions import KINDS, Question, questions_about
from vistok.data.scenes.render import render
from vistok.data.scenes.splits import seeds_of
from vistok.lvlm.micro import make_tokenizer
from vistok.lvlm.packed_questions import packed_positions
from vistok.lvlm.relevance import IGNORED
from vistok.metrics.reconstruction import psnr
from vistok.train.ett_model import Batch, EndToEnd

_RELATIONS = ("horizontal", "vertical", "depth", "size")
_LONGEST, _LONGEST_RELATION = 8, 12  # words of a question
_BEHIND = 4  # "assistant", ":", the answer and the end
_BEFORE = ("<s>", "user", ":")
_QUESTION_STREAM = 5
_OFF_CENTRE = 0.25


class Scenes:
    """Batches of scenes by number: the questions in one sequence for each scene, no question seeing another.

    The language model must be one with the words of micro_lvlm.
    """

    def __init__(
        self,
        side: int,
        patch: int,
        items: int,
        split: str = "train",
        *,
        questions: int = 6,
        kinds: Sequence[str] = KINDS,
        radius: float | None = None,
    ) -> None:
        """side, patch: pixels of a picture and of a visual token. radius: of `close_up`, None = whole scenes.

        Raises: ValueError for a kind of questions that is none, or a radius that is not positive.
        """
        unknown = sorted(set(kinds) - set(KINDS))
        if unknown or not kinds or (radius is not None and radius <= 0):
            raise ValueError(
                f"scenes: expected kinds among {', '.join(KINDS)} and radius > 0, got {unknown or list(kinds)} and "
                f"{radius}"
            )
        self.side, self.tokens, self.items = side, (side // patch) ** 2, items
        self.questions, self.kinds, self.radius = questions, tuple(kinds), radius
        longest = _LONGEST_RELATION if set(kinds) & set(_RELATIONS) else _LONGEST
        self.slot = longest + _BEHIND
        self.seeds = seeds_of(split)
        self.words = make_tokenizer().get_vocab()

    def batch(self, number: int) -> Batch:
        """The batch of that number: pictures, questions with answers, and captions to make pictures from."""
        return self.asked(number)[0]

    def asked(self, number: int) -> tuple[Batch, Tensor]:
        """The batch of that number and the kinds [B, questions] of its questions, places in KINDS."""
        layouts = self._layouts(number)
        images = torch.from_numpy(np.stack([render(layout, self.side).image for layout in layouts]))
        asked = [self._choose(layout) for layout in layouts]
        slots = np.array([[self._slot(question) for question in questions] for questions in asked])
        ids, labels = (torch.from_numpy(slots[:, :, row].reshape(self.items, -1)) for row in (0, 1))
        before = torch.tensor([self.words[word] for word in _BEFORE])
        prefix = len(before) + self.tokens
        extra = {
            "position_ids": packed_positions(self.items, prefix, self.questions, self.slot),
            "packing": (prefix, self.slot),
            "use_cache": False,
        }
        kinds = torch.tensor([[KINDS.index(question.kind) for question in questions] for questions in asked])
        pixels = images.permute(0, 3, 1, 2).float() / 255
        return Batch(pixels, ids, labels, before, extra, *self._prompts(layouts)), kinds

    def _layouts(self, number: int) -> list[Layout]:
        if not 0 <= number < len(self.seeds) // self.items:
            raise ValueError(f"scenes: expected a batch number below {len(self.seeds) // self.items}, got {number}")
        layouts = (make_layout(seed) for seed in self.seeds[number * self.items : (number + 1) * self.items])
        return [layout if self.radius is None else close_up(layout, self.radius) for layout in layouts]

    def _choose(self, layout: Layout) -> list[Question]:
        """First a kind is drawn, then an answer, then a question; one may come twice."""
        rng = np.random.default_rng((layout.seed, _QUESTION_STREAM))
        offered: dict[str, dict[str, list[Question]]] = {}
        for question in questions_about(layout):
            if question.kind in self.kinds:
                offered.setdefault(question.kind, {}).setdefault(question.answer, []).append(question)
        if not offered:
            raise ValueError(
                f"scenes: expected kinds that every scene can be asked, scene {layout.seed} has no question"
            )
        chosen: list[Question] = []
        while len(chosen) < self.questions:
            kind = list(offered)[int(rng.integers(len(offered)))]
            by_answer = list(offered[kind].values())
            same = by_answer[int(rng.integers(len(by_answer)))]
            chosen.append(same[int(rng.integers(len(same)))])
        return chosen

    def _slot(self, question: Question) -> tuple[list[int], list[int]]:
        """Ids and labels: of the answer and of the end behind it."""
        ids = [self.words[word] for word in (*question.text.split(), "assistant", ":", question.answer, "</s>")]
        fill = self.slot - len(ids)
        labels = [IGNORED] * (len(ids) - 2) + ids[-2:] + [IGNORED] * fill
        return ids + [self.words["<pad>"]] * fill, labels

    def _prompts(self, layouts: Sequence[Layout]) -> tuple[Tensor, Tensor]:
        texts = [f"<s> user : {caption(layout)} assistant :".split() for layout in layouts]
        rows = [torch.tensor([self.words[word] for word in text]) for text in texts]
        ids = pad_sequence(rows, batch_first=True, padding_value=self.words["<pad>"], padding_side="left")
        return ids, (ids != self.words["<pad>"]).to(torch.int64)


def close_up(layout: Layout, radius: float) -> Layout:
    """The scene with its nearest thing alone, large and near the middle; radius: in image sides."""
    nearest = layout.things[0]
    x, y = (0.5 + _OFF_CENTRE * (place - 0.5) for place in (nearest.x, nearest.y))
    return replace(layout, things=(replace(nearest, x=x, y=y, radius=radius),))


@dataclass(frozen=True)
class Outcome:
    """accuracy: mean over the kinds of questions, by_kind: of each; answer_loss: L_cap; psnr: mean in dB; usage: share
    of the codes that the scenes took."""

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
    right, asked = torch.zeros(len(KINDS)), torch.zeros(len(KINDS))
    losses: list[Tensor] = []
    decibels: list[Tensor] = []
    used: list[Tensor] = []
    for number in range(batches):
        batch, kinds = scenes.asked(number)
        tokens = model.tokenizer.encode(batch.images)
        decibels.append(psnr(model.tokenizer.decode(tokens), batch.images))
        used.append(tokens.indices.flatten())
        out = model.answer(batch, tokens.embeds)
        losses.append(out.loss)
        said = out.logits[:, -batch.labels.shape[1] - 1 : -1].argmax(-1)
        first = batch.labels != IGNORED
        first[:, 1:] &= batch.labels[:, :-1] == IGNORED
        hits = (said == batch.labels)[first].float()
        right.index_add_(0, kinds.flatten(), hits)
        asked.index_add_(0, kinds.flatten(), torch.ones_like(hits))
    for name, part in model.parts.items():
        part.train(modes[name])
    by_kind = {kind: float(right[i] / asked[i]) for i, kind in enumerate(KINDS) if asked[i]}
    return Outcome(
        accuracy=sum(by_kind.values()) / len(by_kind),
        by_kind=by_kind,
        answer_loss=float(torch.stack(losses).mean()),
        psnr=float(torch.stack(decibels).mean()),
        usage=len(torch.cat(used).unique()) / model.tokenizer.codebook_sizes[0],
    )
