"""Training of SEED's tokenizer (arXiv:2307.08041; SEED-2: arXiv:2310.01218) on rendered scenes; resumes to the bit.

Stage I, "contrastive": the causal Q-Former and its projections learn which caption belongs to which picture. Stage II,
"codebook": all of that stays as it is; the codes, and what is rebuilt from them, learn. The vision tower is frozen
throughout, so what it says about the scenes is worked out once (`scene_features`). Losses: `seed_losses`; in place of
CLIP's image embedding stands the tower's own class token, normalised to mean 0 and variance 1.

Every draw of a step comes from (seed, step), so the state is weights, optimizer of the stage, and step.
S scenes, B of a batch, N tokens of the tower, C their width, Q queries, W their width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vistok.data.scenes.captions import caption
from vistok.data.scenes.layout import make_layout
from vistok.data.scenes.splits import seeds_of
from vistok.metrics.retrieval import retrieval
from vistok.registry import create
from vistok.tokens import TokenTensor
from vistok.train.checkpoint import read_state, write_state
from vistok.train.export import write_half
from vistok.train.optimizers import adamw, update, warm_cosine
from vistok.train.scene_features import cached_features, scene_features
from vistok.train.seed_losses import StageTwoWeights, contrastive_loss, embedding_loss, reconstruction_loss
from vistok.train.seed_start import start_by_width
from vistok.train.step_loop import OnStep, run_steps
from vistok.weights import fingerprint, load_weights

STAGES = {
    "contrastive": ("ln_vision", "query_tokens", "Qformer", "vision_proj", "text_proj", "temp"),
    "codebook": (
        *("encode_task_layer", "quantizer", "decode_task_layer", "pos_embed", "blocks"),
        *("pos_embed_image", "blocks_image", "image_down", "reverse_tokens", "Reverse_Qformer", "distill_image_proj"),
    ),
}


@dataclass(frozen=True)
class Training:
    """One run. tokenizer: a preset of `seed_text`, settings: overrides of it, start: checkpoint to begin from.

    scenes: how many are learned from, seeds from first_scene on. contrastive_steps: of stage I; steps: of both.
    batch, rate: of stage I; codes_batch, codes_rate: of stage II. Either rate rises for `warmup` steps and falls on a
    cosine to 2 % of itself. text_groups: captions of similar length go through the text branch together, in so many
    groups. label_smoothing: of the contrastive loss. weights: of stage II's terms, see `StageTwoWeights`.
    validation: scenes that R@1 is measured on, every `validate_every` steps and at each stage's end.
    """

    out: str
    tokenizer: str = "seed_nano"
    settings: dict[str, Any] = field(default_factory=dict)
    start: str | None = None
    scenes: int = 20_000
    first_scene: int = 1_000_000
    contrastive_steps: int = 200
    steps: int = 600
    batch: int = 256
    codes_batch: int = 256
    text_groups: int = 4
    label_smoothing: float = 0.1
    weights: dict[str, float] = field(default_factory=dict)
    rate: float = 2e-3
    codes_rate: float = 1e-3
    warmup: int = 40
    weight_decay: float = 0.05
    clip: float = 1.0
    bf16: bool = True
    seed: int = 0
    threads: int = 0
    validation: int = 500
    validate_every: int = 50
    save_every: int = 50
    log_every: int = 10


def train(training: Training, on_step: OnStep | None = None) -> dict[str, float]:
    """Run both stages and write the model to `out/model`; returns the last logged metrics."""
    trainer = Trainer(training)
    metrics = trainer.run(on_step)
    write_half(trainer.exported(), Path(training.out) / "model")
    return metrics


class Trainer:
    """Model, optimizer of the stage and step of one run; `run()` goes on from the last checkpoint in `out`."""

    def __init__(self, config: Training) -> None:
        """Raises: ValueError for steps that do not fit each other, or a model without what the stages need."""
        if not 0 <= config.contrastive_steps <= config.steps:
            raise ValueError(f"seed: expected 0 <= contrastive_steps <= steps={config.steps}, got {config}")
        if max(config.batch, config.codes_batch) > config.scenes:
            raise ValueError(f"seed: expected batches of at most scenes={config.scenes}, got {config}")
        if config.threads:
            torch.set_num_threads(config.threads)
        self.config, self.out = config, Path(config.out)
        self.weights = StageTwoWeights(**config.weights)
        torch.manual_seed(config.seed)
        self.model: Any = create("tokenizer", config.tokenizer, **config.settings)
        if not hasattr(self.model, "embed_texts"):
            raise ValueError(f"seed: expected a preset of method seed_text, as seed_nano, got {config.tokenizer!r}")
        width, made = self.model.visual_encoder.width, self.model.distill_image_proj.out_features
        if made != width:
            raise ValueError(f"seed: expected embedding_dim {width}, the width of the vision tower, got {made}")
        if config.start is None:
            start_by_width(self.model)
        else:
            load_weights(self.model, config.start)
        self.step, self.seconds = 0, 0.0
        self._begin_stage()

    @property
    def stage(self) -> str:
        """ "contrastive" or "codebook": of the step to come."""
        return "contrastive" if self.step < self.config.contrastive_steps else "codebook"

    def run(self, on_step: OnStep | None = None) -> dict[str, float]:
        """Go on from the last checkpoint to the last step, saving on the way; returns the last logged metrics."""
        self.prepare(on_step)
        return run_steps(self, on_step, measure=self._measured, ends=(self.config.contrastive_steps,))

    def _measured(self, due: bool) -> dict[str, float]:
        ends = self.step in (self.config.contrastive_steps, self.config.steps)
        return self.validate() if ends or self.step % self.config.validate_every == 0 else {}

    def prepare(self, on_step: OnStep | None = None) -> None:
        """Features of the scenes that are learned from, and of those that R@1 is measured on."""
        config, tower = self.config, self.model.visual_encoder
        tell = (lambda done: on_step(0, {"scenes": float(done)})) if on_step is not None else None
        side = self.model.image_size[0]
        seeds = seeds_of("train")[config.first_scene : config.first_scene + config.scenes]
        origin = {"tower": fingerprint(tower, {})}
        self.features = cached_features(
            self.out / "features", origin, seeds, side, tower, bf16=config.bf16, on_file=tell
        )
        self.held_out = scene_features(seeds_of("validation")[: config.validation], side, tower, config.bf16)

    def train_step(self) -> dict[str, float]:
        """One update of what the stage trains; returns the loss and its terms."""
        config, stage = self.config, self.stage
        torch.manual_seed(config.seed * 1_000_003 + self.step)
        chosen = self.chosen()
        frozen = self._frozen_queries() if stage == "codebook" else None
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.bf16):
            if frozen is None:
                captions = [self.features.captions[place] for place in chosen]
                terms = self.contrastive_terms(self.features.rows(chosen), captions)
            else:
                terms = self.codebook_terms(*(rows[chosen].float() for rows in frozen))
        loss = terms["contrastive"] if stage == "contrastive" else self.weights.total(terms)
        norm = update([self.optimizer], loss, self.model.parameters(), self.rate(), config.clip)
        self.step += 1
        if self.stage != stage:
            self._begin_stage()
        return {"loss": float(loss.detach()), "norm": float(norm), **{k: float(v.detach()) for k, v in terms.items()}}

    def contrastive_terms(self, features: Tensor, captions: Sequence[str]) -> dict[str, Tensor]:
        """Loss of stage I for tokens [B, N, C] of the tower and B captions."""
        model = self.model
        vision = model.embed_queries(model.causal_queries(model.normalised(features)))
        loss = contrastive_loss(vision, self._texts(captions), model.temp.float(), self.config.label_smoothing)
        return {"contrastive": loss}

    def codebook_terms(self, queries: Tensor, pictures: Tensor) -> dict[str, Tensor]:
        """Unweighted terms of stage II's loss for causal queries [B, Q, W] and embeddings of the pictures [B, C]."""
        found = self.model.reconstruct(queries)
        return {
            "quantizer": found.quantized.loss,
            "reconstruction": reconstruction_loss(found.queries, found.target),
            "image": embedding_loss(found.embedding, pictures),
        }

    def chosen(self) -> list[int]:
        """The scenes of this step: of each stage every scene comes once before one comes twice."""
        config = self.config
        first = self.stage == "contrastive"
        size, since = (config.batch, self.step) if first else (config.codes_batch, self.step - config.contrastive_steps)
        epoch, number = divmod(since, config.scenes // size)
        draw = torch.Generator().manual_seed((config.seed * 2 + (not first)) * 1_000_003 + epoch)
        return torch.randperm(config.scenes, generator=draw)[number * size : (number + 1) * size].tolist()

    def rate(self) -> float:
        """Learning rate of this step, from its place in its stage."""
        config = self.config
        first = self.stage == "contrastive"
        since = self.step if first else self.step - config.contrastive_steps
        length = config.contrastive_steps if first else config.steps - config.contrastive_steps
        highest = config.rate if first else config.codes_rate
        return warm_cosine(highest, since, length, config.warmup, floor=0.02)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """R@1, image to text, on scenes of the validation split: from causal embeddings, and rebuilt from codes."""
        model = self.model
        model.eval()
        seeds = seeds_of("validation")[: self.config.validation]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.config.bf16):
            queries = torch.cat(
                [model.causal_queries(model.normalised(some)).float() for some in self.held_out.split(100)]
            )
            quantized = model.quantizer(model.encode_task_layer(queries).float())
            codes = model.embed_codes(TokenTensor(spec=model.spec, indices=quantized.indices))
            texts = self._texts([caption(make_layout(seed)) for seed in seeds])
            vision = model.embed_queries(queries)
        found = {"recall": vision, "recall_codes": codes}
        self._set_modes()
        return {name: retrieval(rows, texts, (1,)).image_to_text[1] for name, rows in found.items()}

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        state = {"step": self.step, "seconds": self.seconds, "model": self.model.state_dict()}
        write_state(self.out, state | {"optimizer": self.optimizer.state_dict()})

    def resume(self) -> None:
        """Go on from `out/last.pt` if there is one."""
        state = read_state(self.out)
        if state is None:
            return
        self.step, self.seconds = state["step"], state["seconds"]
        self.model.load_state_dict(state["model"])
        self._begin_stage()
        self.optimizer.load_state_dict(state["optimizer"])

    def _begin_stage(self) -> None:
        """Freeze what the stage does not train, and take an optimizer for the rest."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.partition(".")[0] in STAGES[self.stage])
            parameter.grad = None  # of the stage before, which would count in the norm that gradients are clipped by
        self._set_modes()
        self._frozen: tuple[Tensor, Tensor] | None = None
        self.optimizer = adamw(self.model, self.config.rate, self.config.weight_decay)[0]

    def exported(self) -> Any:
        """The model to ship: moving averages of codes become a plain table, which no call in training mode moves."""
        quantizer = self.model.quantizer
        if not hasattr(quantizer, "set_codebook"):
            return self.model
        dim, size = quantizer.dim, quantizer.codebook_sizes[0]
        table = {"method": "vq_learned", "metric": quantizer.metric, "dim": dim, "codebook_size": size}
        model = create("tokenizer", self.config.tokenizer, **(self.config.settings | {"quantizer": table}))
        state = {name: value for name, value in self.model.state_dict().items() if not name.startswith("quantizer.")}
        model.load_state_dict(state | {"quantizer.embedding": quantizer.codebook})
        return model

    def _set_modes(self) -> None:
        """Dropout and moving averages in what is trained only."""
        for name, part in self.model.named_children():
            part.train(name in STAGES[self.stage])

    @torch.no_grad()
    def _frozen_queries(self) -> tuple[Tensor, Tensor]:
        """Causal queries [S, Q, W] and embeddings [S, C] of all scenes, float16: in stage II neither changes."""
        if self._frozen is None:
            parts = []
            for places in torch.arange(len(self.features)).split(self.config.batch):
                features = self.features.rows(places.tolist())
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.config.bf16):
                    queries = self.model.causal_queries(self.model.normalised(features))
                parts.append((queries.half(), image_embedding(features).half()))
            self._frozen = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        return self._frozen

    def _texts(self, captions: Sequence[str]) -> Tensor:
        """Embeddings [B, P] of captions, worked out in groups of similar length: padding costs as much as words."""
        order = sorted(range(len(captions)), key=lambda place: len(captions[place].split()))
        size = math.ceil(len(order) / self.config.text_groups)
        groups = [order[start : start + size] for start in range(0, len(order), size)]
        found = torch.cat([self.model.embed_texts([captions[place] for place in group]) for group in groups])
        return found[torch.tensor(order).argsort()]


def image_embedding(features: Tensor) -> Tensor:
    """The picture as a whole [B, C] of tokens [B, N, C]: the class token, which comes first, normalised."""
    return nn.functional.layer_norm(features[:, 0].float(), features.shape[2:])
