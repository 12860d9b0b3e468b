"""Visual query tuning beside a linear probe on labelled images (arXiv:2212.03220, protocol of its released code).

For each task and readout: learning rate and weight decay by accuracy on a part of the training images that was held
out, then one fit on all of them per seed, measured on test images. With the queries of VQT frozen, heads are then
fitted again: to all features, and to a part of them. Nothing but queries and heads is trained; the backbone runs once
for each image.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vistok.layers.feature_head import FeatureHead
from vistok.metrics.linear_probe import linear_probe
from vistok.readouts._captured import Captured
from vistok.readouts.vqt import VQT
from vistok.readouts.vqt_classifier import VQTClassifier
from vistok.registry import create
from vistok.train.captured_images import CapturedImages
from vistok.train.checkpoint import write_weights
from vistok.train.classifier_fit import Recipe, fit, predicted
from vistok.train.feature_selection import keep_features, refit_head
from vistok.train.labelled_images import FASHION, classes_of, labelled_images, source_of
from vistok.train.metrics_log import append_row
from vistok.train.same_settings import keep_settings
from vistok.train.standardized_head import standardized
from vistok.train.step_loop import OnStep
from vistok.train.vqt_results import Facts, Result, read_results, result_file, write_result

_FREE = ("out", "tasks", "tokens", "fashion_mnist", "threads")  # a run may go on with others of these


@dataclass(frozen=True)
class Training:
    """One run. backbone: preset of a timm tokenizer, checkpoint: weights other than its own; tasks: of `TASKS`.

    tokens: numbers of queries per block, each a readout of its own beside the linear probe; search_tokens: with how
    many of them the recipe of all of these is searched, None: each with its own; vqt: more settings of `VQT`.
    fashion_mnist: folder with its files. train_images: of each task, of which validation_images choose among
    learning_rates (for 256 rows a batch) and weight_decays; probe_learning_rates, probe_weight_decays: those of the
    linear probe, whose fits cost next to nothing, None: the same. standardize: heads are fitted on standardised
    features, of which untrained queries give mean and deviation; a few epochs do then, where the authors' way needs
    many. keep: share of the features after selection by a group lasso of strength group_lasso. head_epochs: of heads
    that are fitted again to frozen queries, which costs little, None: as many as epochs.
    """

    out: str
    backbone: str = "vit_nano"
    checkpoint: str | None = None
    tasks: list[str] = field(default_factory=lambda: ["color", "texture", "size", "column", "fashion_mnist"])
    tokens: list[int] = field(default_factory=lambda: [1, 10])
    search_tokens: int | None = None
    vqt: dict[str, Any] = field(default_factory=dict)
    fashion_mnist: str | None = None
    train_images: int = 1000
    validation_images: int = 200
    test_images: int = 2000
    learning_rates: list[float] = field(default_factory=lambda: [1.0, 0.5, 0.25, 0.1, 0.05])
    weight_decays: list[float] = field(default_factory=lambda: [0.01, 0.001, 0.0001, 0.0])
    probe_learning_rates: list[float] | None = None
    probe_weight_decays: list[float] | None = None
    solver: str = "adam"
    batch: int = 128
    epochs: int = 100
    warm_epochs: int = 10
    standardize: bool = False
    keep: float = 0.3
    head_epochs: int | None = None
    group_lasso: float = 1e-4
    seeds: list[int] = field(default_factory=lambda: [42, 44, 82])
    threads: int = 0

    @property
    def steps(self) -> int:
        """Results that the run makes: tasks times readouts."""
        return len(self.tasks) * (1 + len(self.tokens))


class LinearProbe(nn.Module):
    """The head of VQT on the final feature alone, divided by its length as there."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.head = FeatureHead(width, classes)

    def read(self, captured: Captured) -> Tensor:
        """Logits [B, C]."""
        logits: Tensor = self.head(self.features(captured))
        return logits

    def features(self, captured: Captured) -> Tensor:
        """[B, D]."""
        return nn.functional.normalize(captured.pooled, dim=-1)


def train(training: Training, on_step: OnStep | None = None) -> dict[str, float]:
    """Fit all readouts on all tasks; results lie in `out/results`, the first seed's VQTs in `out/model`.

    Results that are there already are kept. Returns the mean accuracy over tasks with most queries, as "accuracy".
    Raises: ValueError for a task, solver, seeds, rates, share or numbers of images that there cannot be, for a folder
    with results of other settings, and as `VQT` and `labelled_images`.
    """
    comparison = Comparison(training)
    out = Path(training.out)
    keep_settings("vqt", training, out, _FREE)
    metrics: dict[str, float] = {"step": 0}
    for done, result in enumerate(comparison.results(), 1):
        metrics = {"step": done, "accuracy": result.accuracy}
        append_row(out / "metrics.jsonl", {**metrics, "seconds": round(result.facts.seconds, 1)})
        if on_step is not None:
            on_step(done, metrics)
    most = max(training.tokens, default=0)
    means = [
        result.accuracy
        for result in read_results(out)
        if result.facts.tokens == most and result.facts.task in training.tasks
    ]
    return {**metrics, "accuracy": sum(means) / len(means)}


class Comparison:
    """The backbone and the images of one run."""

    def __init__(self, config: Training) -> None:
        """Raises: as `train`."""
        if config.threads:
            torch.set_num_threads(config.threads)
        sources = {task: source_of(task) for task in config.tasks}
        if not sources or not config.seeds or any(count < 1 for count in config.tokens):
            raise ValueError(
                f"vqt: expected tasks, seeds and numbers of queries >= 1, got {config.tasks}, {config.seeds} and "
                f"{config.tokens}"
            )
        if config.search_tokens is not None and config.search_tokens < 1:
            raise ValueError(f"vqt: expected search_tokens >= 1, got {config.search_tokens}")
        if not config.learning_rates or not config.weight_decays or not 0 < config.keep <= 1:
            raise ValueError(
                f"vqt: expected learning_rates, weight_decays and keep in (0, 1], got {config.learning_rates}, "
                f"{config.weight_decays} and {config.keep}"
            )
        if not 0 < config.validation_images < config.train_images:
            raise ValueError(
                f"vqt: expected validation_images in 1..{config.train_images - 1}, got {config.validation_images}"
            )
        if FASHION in config.tasks:
            # Now, and not when the tasks before it are done.
            labelled_images(FASHION, "test", 1, 28, config.fashion_mnist)
        self.config, self.sources = config, sources
        self.chosen: dict[tuple[str, int], tuple[Recipe, float]] = {}
        self.recipes = self._recipes(config.learning_rates, config.weight_decays)
        self.probe_recipes = self._recipes(
            config.probe_learning_rates or config.learning_rates, config.probe_weight_decays or config.weight_decays
        )
        self.head_epochs = config.epochs if config.head_epochs is None else config.head_epochs
        if self.head_epochs <= config.warm_epochs:
            raise ValueError(
                f"vqt: expected head_epochs > warm_epochs, got {self.head_epochs} and {config.warm_epochs}"
            )
        weights = {"pretrained": True} if config.checkpoint is None else {"checkpoint": config.checkpoint}
        self.backbone: Any = create("tokenizer", config.backbone, **weights)
        side = self.backbone.image_size
        if side is None or side[0] != side[1]:
            raise ValueError(f"vqt: expected a backbone of square pictures of one size, {config.backbone} has {side}")
        self.side: int = side[0]

    def results(self) -> Iterator[Result]:
        """Every result that is not on disk yet, source by source, once it is written."""
        config, out = self.config, Path(self.config.out)
        for source in dict.fromkeys(self.sources.values()):
            tasks = [task for task in config.tasks if self.sources[task] == source]
            missing = [
                (task, tokens)
                for tokens, task in product([0, *config.tokens], tasks)
                if not result_file(out, task, tokens).is_file()
            ]
            images = self._images(source) if missing else None
            for task, tokens in missing:
                assert images is not None
                result = self._result(task, tokens, images, images.seen_labels[task], images.unseen_labels[task])
                write_result(out, result)
                yield result

    def make(self, tokens: int, classes: int, seed: int) -> Any:
        """A readout with `tokens` queries per block, or the linear probe for 0, in training mode; draws begin here."""
        torch.manual_seed(seed)
        vit = self.backbone.net
        if not tokens:
            return LinearProbe(vit.num_features, classes)
        return VQTClassifier(VQT(vit, tokens, **self.config.vqt), classes).train()

    def choose(self, tokens: int, seen: CapturedImages, labels: Tensor, classes: int) -> tuple[Recipe, float]:
        """The recipe with the best accuracy on the last images, which no fit saw, and that accuracy.

        Of equal ones the smaller rate wins. Raises: ValueError if no fit stayed finite.
        """
        config = self.config
        rows = torch.arange(len(labels))
        fitted, held_out = rows[: -config.validation_images], rows[-config.validation_images :]
        recipes = self.recipes if tokens else self.probe_recipes
        best, best_accuracy = recipes[0], -1.0
        for recipe in recipes:
            model = self.make(tokens, classes, config.seeds[0])
            if not math.isfinite(self._fit(model, seen, labels[fitted], recipe, config.seeds[0])):
                continue
            accuracy = float((_predicted(model, seen, held_out) == labels[held_out]).double().mean())
            if accuracy > best_accuracy:
                best, best_accuracy = recipe, accuracy
        if best_accuracy < 0:
            rates = [recipe.learning_rate for recipe in recipes]
            raise ValueError(f"vqt: no learning rate of {rates} gave a finite loss; try smaller ones")
        return best, best_accuracy

    def _recipes(self, rates: list[float], decays: list[float]) -> list[Recipe]:
        config = self.config
        return [
            Recipe(rate, decay, config.solver, config.batch, config.epochs, config.warm_epochs)
            for rate, decay in product(sorted(rates), decays)
        ]

    def _result(self, task: str, tokens: int, images: "_Images", labels: Tensor, test_labels: Tensor) -> Result:
        config, classes = self.config, len(classes_of(task))
        began = time.monotonic()
        search = (config.search_tokens or tokens) if tokens else 0
        if (task, search) not in self.chosen:
            self.chosen[task, search] = self.choose(search, images.seen, labels, classes)
        recipe, validation = self.chosen[task, search]
        rows = torch.arange(len(test_labels))
        right, refit_right, kept_right = [], [], []
        features, kept = self.backbone.net.num_features, None
        for seed in config.seeds:
            model = self.make(tokens, classes, seed)
            loss = self._fit(model, images.seen, labels, recipe, seed)
            if not math.isfinite(loss):
                raise FloatingPointError(f"{config.out}: {task}: loss is {loss} with {recipe}; use smaller rates")
            if not tokens:
                right.append(_predicted(model, images.unseen, rows) == test_labels)
                continue
            features = model.vqt.num_features
            test_features = _features(model, images.unseen)
            right.append(_judged(model, test_features) == test_labels)
            if seed == config.seeds[0]:
                self._write_model(f"{task}.vqt_t{tokens}", model)
            seen = _features(model, images.seen)
            again = replace(recipe, epochs=self.head_epochs)
            around = self._around(model.head, seen)
            refit_head(model, seen, labels, again, seed, around=around)
            refit_right.append(_judged(model, test_features) == test_labels)
            shares = {"keep": config.keep, "strength": config.group_lasso}
            keep_features(model, seen, labels, again, seed, around=around, **shares)
            kept = len(model.head.select_ids)
            kept_right.append(_judged(model, test_features) == test_labels)
            if seed == config.seeds[0]:
                self._write_model(f"{task}.vqt_t{tokens}_kept", model)
        solved = None
        if not tokens:
            solved = linear_probe(images.seen.all.pooled, labels, images.unseen.all.pooled, test_labels).accuracy
        facts = Facts(
            task, tokens, classes, features, kept, config.seeds, recipe.learning_rate, recipe.weight_decay, validation,
            solved, time.monotonic() - began,
        )  # fmt: skip
        heads = (torch.stack(found) if found else None for found in (refit_right, kept_right))
        return Result(facts, torch.stack(right), *heads)

    def _fit(self, model: Any, images: CapturedImages, labels: Tensor, recipe: Recipe, seed: int) -> float:
        images = _needed(model, images)
        # Statistics too are of the images that are fitted to, not of those held out behind them.
        with self._around(model.head, _features(model, images)[: len(labels)])():
            return fit(model.train(), lambda rows: model.read(images.rows(rows)), labels, recipe, seed)

    def _around(self, head: FeatureHead, features: Tensor) -> Callable[[], AbstractContextManager[None]]:
        return partial(standardized, head, features) if self.config.standardize else nullcontext

    def _write_model(self, name: str, model: VQTClassifier) -> None:
        write_weights(Path(self.config.out) / "model" / f"{name}.safetensors", model)

    def _images(self, source: str) -> "_Images":
        """Both splits of a source, seen by the backbone."""
        config = self.config
        counts = {"train": config.train_images, "test": config.test_images}
        captured, labels = {}, {}
        vqt = VQT(self.backbone.net, 1, **config.vqt).eval()
        centre, spread = (torch.tensor(values).view(3, 1, 1) for values in (self.backbone.mean, self.backbone.std))
        for split, count in counts.items():
            found = labelled_images(source, split, count, self.side, config.fashion_mnist)
            captured[split] = CapturedImages(vqt, (found.images - centre) / spread)
            labels[split] = found.labels
        return _Images(captured["train"], labels["train"], captured["test"], labels["test"])


class _Images(NamedTuple):
    """Of one source: images that are fitted to and images that are tested on, each with labels task -> [N] int64."""

    seen: CapturedImages
    seen_labels: dict[str, Tensor]
    unseen: CapturedImages
    unseen_labels: dict[str, Tensor]


def _judged(model: VQTClassifier, features: Tensor) -> Tensor:
    """The classes [N] that the head gives features [N, F]."""
    return predicted(lambda rows: model.head(features[rows]), torch.arange(len(features)))


def _predicted(model: Any, images: CapturedImages, rows: Tensor) -> Tensor:
    model.eval()
    images = _needed(model, images)
    return predicted(lambda ids: model.read(images.rows(ids)), rows)


def _needed(model: Any, images: CapturedImages) -> CapturedImages:
    """The linear probe looks at no block, and copies of all blocks' tokens would be most of its time."""
    return images.without_blocks() if isinstance(model, LinearProbe) else images


@torch.no_grad()
def _features(model: Any, images: CapturedImages) -> Tensor:
    """What the head looks at, [N, F], without query dropout."""
    model.eval()
    read = model.features if isinstance(model, LinearProbe) else lambda captured: model.vqt.read(captured).features
    return torch.cat([read(images.rows(part)) for part in torch.arange(len(images)).split(250)])
