"""A picture as ids of a language model's own vocabulary, then questions and answers about it, to train on the answers.

The words around them are those of the processor's chat template; where it puts the image, the ids of its codes stand.
B samples, n ids of the longest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vistok.lvlm.image_text_collator import IGNORED, ImageTextCollator, padded_rows, padding_id
from vistok.lvlm.vocabulary import VocabMap
from vistok.tokens import TokenTensor


class Turn(NamedTuple):
    """A question and what shall be answered."""

    question: str
    answer: str


Dialogue = tuple[TokenTensor, Sequence[Turn]]


@dataclass
class ImageDialogueCollator:
    """Samples to a batch: input_ids, attention_mask, labels, each [B, n] int64, padded on the right.

    Labels stand at the answers and what the template ends them with, all else is -100. processor: with a tokenizer and
    a chat template for images and text. max_length: of a sample.
    """

    processor: Any
    vocabulary: VocabMap
    max_length: int | None = None

    def __post_init__(self) -> None:
        """Raises: ValueError if the processor has no chat template or no image token."""
        if getattr(self.processor, "chat_template", None) is None:
            raise ValueError("image_dialogue_collator: expected a processor with a chat template, got none; set one")
        if getattr(self.processor, "image_token_id", None) is None:
            raise ValueError(
                f"image_dialogue_collator: expected a processor with an image token, got "
                f"{type(self.processor).__name__}"
            )
        self._images = ImageTextCollator(self.processor.tokenizer, self.vocabulary)
        self._padding = padding_id(self.processor.tokenizer)

    def __call__(self, samples: Sequence[Dialogue]) -> dict[str, Tensor]:
        """Raises: ValueError if there are no samples, a sample has no turns or is too long, or an image does not fit,
        or for a template whose words for a turn depend on what comes later.
        """
        if not samples:
            raise ValueError("image_dialogue_collator: expected at least one sample, got none")
        return padded_rows([self._row(place, *sample) for place, sample in enumerate(samples)], self._padding)

    def _row(self, place: int, tokens: TokenTensor, turns: Sequence[Turn]) -> tuple[Tensor, Tensor]:
        if not turns:
            raise ValueError(f"sample {place}: expected at least one question with its answer, got none")
        image = self._images.part_ids(tokens)
        messages: list[dict[str, Any]] = []
        ids: list[int] = []
        labels: list[int] = []
        for turn in turns:
            content: list[dict[str, str]] = [] if messages else [{"type": "image"}]
            content.append({"type": "text", "text": turn.question})
            messages.append({"role": "user", "content": content})
            self._extend(ids, labels, self._ids(messages, prompt=True), learned=False)
            messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
            self._extend(ids, labels, self._ids(messages, prompt=False), learned=True)
        found = self._with_image(torch.tensor(ids), torch.tensor(labels), image, place)
        if self.max_length is not None and len(found[0]) > self.max_length:
            raise ValueError(
                f"sample {place}: expected at most max_length={self.max_length} ids, got {len(found[0])}; ask fewer "
                "questions about an image, or give its store a budget"
            )
        return found

    def _ids(self, messages: list[dict[str, Any]], *, prompt: bool) -> list[int]:
        tokenizer = self.processor.tokenizer
        text: str = self.processor.apply_chat_template(messages, add_generation_prompt=prompt)
        # A template that writes the first token itself must not get a second one.
        begun = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        return list(tokenizer(text, add_special_tokens=not begun).input_ids)

    @staticmethod
    def _extend(ids: list[int], labels: list[int], longer: list[int], *, learned: bool) -> None:
        if longer[: len(ids)] != ids:
            raise ValueError(
                "chat template: expected one that writes a conversation as its beginning and what follows, so that "
                "answers can be told from questions; this one writes the beginning in another way once more follows"
            )
        new = longer[len(ids) :]
        ids += new
        labels += new if learned else [IGNORED] * len(new)

    def _with_image(self, ids: Tensor, labels: Tensor, image: Tensor, place: int) -> tuple[Tensor, Tensor]:
        places = (ids == self.processor.image_token_id).nonzero().flatten().tolist()
        if len(places) != 1:
            raise ValueError(
                f"sample {place}: expected one image token in a conversation about one image, got {len(places)}"
            )
        [at] = places
        nothing = torch.full_like(image, IGNORED)
        return (
            torch.cat((ids[:at], image, ids[at + 1 :])),
            torch.cat((labels[:at], nothing, labels[at + 1 :])),
        )
