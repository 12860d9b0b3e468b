"""Questions about pictures as batches of model inputs, every picture through the vision tower once.

B questions of a batch, n tokens of the longest prompt, N visual tokens of a picture, D.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image
from torch import Tensor

from vistok.data.images import open_image
from vistok.lvlm.family import FAMILIES, family_of, visual_features
from vistok.lvlm.inputs import with_features

Read = Callable[[Any], Image.Image]

GREY_LEVEL = (128, 128, 128)


@dataclass(frozen=True)
class VisualQuestion:
    """A question about one picture. picture: whatever `read` opens; equal values are the same picture."""

    picture: Any
    text: str
    answer: str = ""
    kind: str = "any"


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts padded on the left, as `model.generate(**inputs)` takes them.

    numbers [B]: which questions. features: projected tokens [N, D] of each question's picture, the same that `inputs`
    holds; empty where the model is given pixels.
    """

    numbers: list[int]
    inputs: dict[str, Any]
    features: list[Tensor]


def as_picture(picture: Any) -> Image.Image:
    """A picture in memory as it is, one at a path opened."""
    return picture if isinstance(picture, Image.Image) else open_image(Path(picture))


def batches(
    model: Any,
    processor: Any,
    questions: Sequence[VisualQuestion],
    read: Read = as_picture,
    *,
    batch: int = 32,
    pixels: bool = False,
) -> Iterator[Batch]:
    """All questions in batches of at most `batch`, questions of similar length together.

    A picture is opened once. Its features are computed once and given to the model, but for classes whose features have
    places of their own (mRoPE) and classes that vistok does not know: these get pixels. pixels: give pixels in any
    case, for a pruner that reads the attention of the tower. Raises: ValueError if batch is below 1 or the model is in
    training mode.
    """
    if batch < 1:
        raise ValueError(f"batch: expected at least 1 question, got {batch}")
    if model.training:
        raise ValueError("expected a model in evaluation mode; call model.eval() first")
    by_features = not pixels and takes_features(model)
    for window in _windows(questions, batch):
        keys = list(dict.fromkeys(_key(questions[number]) for number in window))
        first = {_key(questions[number]): questions[number].picture for number in reversed(window)}
        images = {key: read(first[key]) for key in keys}
        features: dict[Any, Tensor] = {}
        if by_features:
            features = dict(zip(keys, encode_pictures(model, processor, list(images.values())), strict=True))
        for start in range(0, len(window), batch):
            numbers = window[start : start + batch]
            texts = [chat_prompt(processor, questions[number].text) for number in numbers]
            own = [features[_key(questions[number])] for number in numbers] if by_features else []
            if by_features:
                inputs = feature_inputs(model, processor, texts, own)
            else:
                inputs = pixel_inputs(model, processor, texts, [images[_key(questions[n])] for n in numbers])
            yield Batch(numbers, inputs, own)


def takes_features(model: Any) -> bool:
    """Whether a model's class takes the features of its pictures in place of pixels, with nothing else."""
    known = any(kind.__name__ in FAMILIES for kind in type(model).__mro__)
    return known and not family_of(model).mrope


def encode_pictures(model: Any, processor: Any, images: Sequence[Image.Image]) -> list[Tensor]:
    """Projected features [N, D] of every picture, in one pass through the tower."""
    inputs = _on(model, processor.image_processor(images=list(images), return_tensors="pt"))
    return visual_features(model, family_of(model), inputs)["image"]


def chat_prompt(processor: Any, question: str) -> str:
    """The processor's chat template around one picture and one question."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    prompt: str = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return prompt


def feature_inputs(model: Any, processor: Any, texts: Sequence[str], features: Sequence[Tensor]) -> dict[str, Any]:
    """Inputs with one picture per prompt, given as features: as many placeholders as it has tokens.

    Raises: ValueError if the chat template does not leave one placeholder.
    """
    token = processor.image_token
    if any(text.count(token) != 1 for text in texts):
        raise ValueError(f"chat template: expected one {token} in the prompt of a question, got {texts[0]!r}")
    grown = [text.replace(token, token * len(own)) for text, own in zip(texts, features, strict=True)]
    made = processor.tokenizer(grown, **_tokenizing(processor, texts))
    inputs = {name: made[name] for name in ("input_ids", "attention_mask")}
    return with_features(_on(model, inputs), family_of(model), {"image": list(features)})


def pixel_inputs(model: Any, processor: Any, texts: Sequence[str], images: Sequence[Image.Image]) -> dict[str, Any]:
    """Inputs with one picture per prompt, as the processor makes them."""
    made = processor(images=list(images), text=list(texts), **_tokenizing(processor, texts))
    return _on(model, made)


def _tokenizing(processor: Any, texts: Sequence[str]) -> dict[str, Any]:
    # A template that writes the first token itself must not get a second one.
    start = processor.tokenizer.bos_token
    begun = start is not None and texts[0].startswith(start)
    return {"padding": True, "padding_side": "left", "return_tensors": "pt", "add_special_tokens": not begun}


def _on(model: Any, inputs: Any) -> dict[str, Any]:
    """The inputs on the model's device, floating-point ones in its dtype."""
    return {
        name: value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)
        for name, value in inputs.items()
    }


def _windows(questions: Sequence[VisualQuestion], pictures: int) -> Iterator[list[int]]:
    """Questions about `pictures` pictures at a time, by length; pictures with long questions come late."""
    by_picture: dict[Any, list[int]] = {}
    for number in Random(0).sample(range(len(questions)), len(questions)):
        by_picture.setdefault(_key(questions[number]), []).append(number)
    groups = sorted(by_picture.values(), key=lambda group: max(len(questions[n].text) for n in group))
    for start in range(0, len(groups), pictures):
        window = [number for group in groups[start : start + pictures] for number in group]
        yield sorted(window, key=lambda number: len(questions[number].text))


def _key(question: VisualQuestion) -> Any:
    # Pillow's images compare by pixels and have no hash.
    return id(question.picture) if isinstance(question.picture, Image.Image) else question.picture
