"""What the verbs that ask a vision-language model share: a user's own questions, and a progress bar."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def own_questions(data: str, images: str | None, count: int) -> list[Any]:
    """The first `count` questions of a LLaVA JSON or JSONL file."""
    from vistok.lvlm.prompting import VisualQuestion
    from vistok.train.conversations import read_conversations

    if not Path(data).is_file():
        raise FileNotFoundError(f"--data: no such file: {data}")
    samples = islice(read_conversations(data, images), count)
    asked = [VisualQuestion(sample.image, sample.question, sample.answer) for sample in samples]
    if not asked:
        raise ValueError(f"{data}: expected questions about pictures, found none")
    return asked


@contextmanager
def asking_progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar over `total` questions; yields what advances it."""
    columns = (TextColumn("questions"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("questions", total=total)
        yield lambda count: progress.advance(task, count)
