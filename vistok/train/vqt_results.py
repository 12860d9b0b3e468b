"""What comparing readouts of a frozen backbone left on disk: one file for each task and readout."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

_FOLDER = "results"


@dataclass(frozen=True)
class Facts:
    """tokens: queries per block, 0 for the linear probe; features: F, kept_features: of them after selection, or None.

    learning_rate, weight_decay: chosen; validation: their accuracy; solved: accuracy of the same linear probe fitted to
    convergence on the test images, None for VQT; seconds: of all fits.
    """

    task: str
    tokens: int
    classes: int
    features: int
    kept_features: int | None
    seeds: list[int]
    learning_rate: float
    weight_decay: float
    validation: float
    solved: float | None
    seconds: float

    @property
    def readout(self) -> str:
        """Name in tables and of the file."""
        return f"vqt_t{self.tokens}" if self.tokens else "linear"


@dataclass(frozen=True)
class Result:
    """right: which test images each seed's model had right, [S, N] bool.

    Of VQT also with heads fitted again to frozen queries: refit_right of all features, kept_right of selected ones.
    """

    facts: Facts
    right: Tensor
    refit_right: Tensor | None = None
    kept_right: Tensor | None = None

    @property
    def accuracy(self) -> float:
        """Mean over seeds and images."""
        return float(self.right.double().mean())


def result_file(run: Path, task: str, tokens: int) -> Path:
    """Where the result of a task and readout lies."""
    return run / _FOLDER / (f"{task}.vqt_t{tokens}.safetensors" if tokens else f"{task}.linear.safetensors")


def write_result(run: Path, result: Result) -> None:
    """Write one file, whole or not at all."""
    path = result_file(run, result.facts.task, result.facts.tokens)
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"right": result.right, "refit_right": result.refit_right, "kept_right": result.kept_right}
    tensors = {name: value.contiguous() for name, value in found.items() if value is not None}
    partial = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    save_file(tensors, partial, {"facts": json.dumps(asdict(result.facts))})
    os.replace(partial, path)


def read_results(run: str | Path) -> list[Result]:
    """All results of a run, in the order of their names. Raises: FileNotFoundError if there are none."""
    found = []
    for path in sorted((Path(run) / _FOLDER).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            facts = Facts(**json.loads(file.metadata()["facts"]))
        found.append(Result(facts, **tensors))
    if not found:
        raise FileNotFoundError(f"{run}: expected the folder of `vistok train vqt`, found no results in it")
    return found
