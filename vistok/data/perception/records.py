"""A record of LLaVA's training files: {id, image, conversations: [human, gpt, ...]}; equal inputs give equal ids."""

import uuid
import zlib
from typing import Any

import numpy as np

Record = dict[str, Any]


def picture_rng(seed: int, image: str, stream: int = 0) -> np.random.Generator:
    """Draws about one picture: they depend on the seed, the picture's name and the stream, not on its neighbours."""
    return np.random.default_rng((seed, zlib.crc32(image.encode()), stream))


def record(image: str, question: str, answer: str, *, kind: str, seed: int = 0, **extra: Any) -> Record:
    """One question about one picture with its answer; the id has the form of a uuid4. extra: further JSON fields."""
    digest = zlib.crc32(f"{kind}\n{question}\n{answer}".encode())
    name = uuid.UUID(bytes=np.random.default_rng((seed, zlib.crc32(image.encode()), digest)).bytes(16), version=4)
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"id": str(name), "image": image, "conversations": turns, "kind": kind, **extra}
