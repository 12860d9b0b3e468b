"""What a page tells of an evaluation: the numbers that `--json` wrote, as tables; of known kinds their charts first."""

from pathlib import Path
from typing import Any

from vistok.report.json_file import read_json_text
from vistok.report.json_parts import parts_of
from vistok.report.page import Part, Section
from vistok.report.prune_parts import is_pruning, prune_parts
from vistok.report.rate_parts import is_rates, rate_parts

RESULT = "result.json"


def eval_section(file: Path, samples: int, room: int) -> Section:
    """All parts. Raises: ValueError naming the file if it is no JSON object."""
    value = read_result(file)
    name = file.parent.resolve().name if file.name == RESULT else file.stem
    try:
        return Section(name, f"evaluation in {file}", _parts(value, samples, room))
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError) as error:
        # It looks like a result of ours and something in it is not as we write it.
        raise ValueError(
            f"{file}: expected a result as vistok writes it, got {error!r}; run the command again"
        ) from error


def read_result(file: Path) -> dict[str, Any]:
    """The object in a file. Raises: OSError; ValueError naming the file if it holds anything else."""
    try:
        value = read_json_text(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: expected JSON as `--json FILE` writes it, got {error}") from error
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{file}: expected a JSON object as `--json FILE` writes it, got {type(value).__name__}")
    return value


def _parts(value: dict[str, Any], samples: int, room: int) -> list[Part]:
    if is_pruning(value):
        return prune_parts(value, samples, room)
    if is_rates(value):
        return rate_parts(value)
    return parts_of("Summary", value)
