"""Pictures with questions and answers, or with captions, from a file as batches of ETT."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from vistok.data.images import open_image
from vistok.layers.preprocess import Preprocess
from vistok.lvlm.relevance import IGNORED
from vistok.train.conversations import read_conversations
from vistok.train.ett_model import Batch


class Conversations:
    """Batches by number of what `read_conversations` reads; each pass goes over all of it in an order of its own."""

    def __init__(
        self, file: str | Path, images: str | Path | None, words: Any, *, prompt: str = "{question}\n", seed: int = 0
    ) -> None:
        """words: a tokenizer of transformers. prompt: what stands between the picture and the answer.

        Raises: as `read_conversations`; ValueError if the file holds no picture with an answer.
        """
        self.samples = list(read_conversations(file, images))
        if not self.samples:
            raise ValueError(f"{file}: expected pictures with questions and answers, found none")
        self.words, self.prompt, self.seed = words, prompt, seed

    def batch(self, number: int, items: int, side: int, stream: int = 0) -> Batch:
        """Batch `number` of `items` pictures, cut to side x side pixels; answers and their ends are labelled.

        stream: 0..9, each goes over the pictures in orders of its own.
        """
        pass_, first = divmod(number * items, len(self.samples))
        order: list[int] = []
        while len(order) < first + items:
            draw = torch.Generator().manual_seed((self.seed * 10 + stream) * 1_000_003 + pass_)
            order += torch.randperm(len(self.samples), generator=draw).tolist()
            pass_ += 1
        chosen = [self.samples[index] for index in order[first : first + items]]
        prepare = Preprocess(side, side)
        pictures = [s.image if isinstance(s.image, Image.Image) else open_image(s.image) for s in chosen]
        asked = [self._ids(self.prompt.format(question=sample.question)) for sample in chosen]
        end = [] if self.words.eos_token_id is None else [self.words.eos_token_id]
        said = [[*self._ids(sample.answer), *end] for sample in chosen]
        rows = [torch.tensor(question + answer) for question, answer in zip(asked, said, strict=True)]
        labels = [
            torch.tensor([IGNORED] * len(question) + answer) for question, answer in zip(asked, said, strict=True)
        ]
        # Padding stands behind all words, where a causal model sees it too late to matter.
        padding = self.words.pad_token_id or 0
        begin = [] if self.words.bos_token_id is None else [self.words.bos_token_id]
        prompts = [torch.tensor(begin + answer[: len(answer) - len(end)]) for answer in said]
        lengths = torch.tensor([len(row) for row in prompts])
        prompt = pad_sequence(prompts, batch_first=True, padding_value=padding, padding_side="left")
        return Batch(
            torch.stack([prepare(picture) for picture in pictures]),
            pad_sequence(rows, batch_first=True, padding_value=padding),
            pad_sequence(labels, batch_first=True, padding_value=IGNORED),
            torch.tensor(begin, dtype=torch.int64),
            prompt=prompt,
            mask=(torch.arange(prompt.shape[1]) >= prompt.shape[1] - lengths[:, None]).to(torch.int64),
        )

    def _ids(self, text: str) -> list[int]:
        return list(self.words(text, add_special_tokens=False).input_ids)
