"""What stages of AURORA train on `micro_lvlm`: new rows for a family of spans, and LoRA on the language model.

Tower, projector and old rows are frozen. Stages hand rows and matrices on by their checkpoints.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from vistok.train.checkpoint import read_state, write_state
from vistok.train.optimizers import restore

BASE = "micro_lvlm"
_PROJECTIONS = r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


class AdapterRates(Protocol):
    """Settings of a run that say how fast it learns."""

    @property
    def rate(self) -> float: ...
    @property
    def head_rate(self) -> float: ...
    @property
    def embedding_rate(self) -> float: ...
    @property
    def warmup(self) -> int: ...
    @property
    def clip(self) -> float: ...
    @property
    def steps(self) -> int: ...


class PerceptionAdapter:
    """The base with what is trained around it.

    model, processor: of the base, with the family's rows; attention of the language model is `packed_attention`.
    adapted: the same in PEFT; trained: its parameters by name; texts: questions with the family's strings; lead: ids
    in front of the picture.
    """

    def __init__(
        self,
        codes: int,
        rank: int,
        seed: int,
        start: Literal["words", "codebook", "waves"] = "words",
        asks: Literal["depths", "counts"] = "depths",
    ) -> None:
        """start: of code rows, in the head "words" between words of distances, or "codebook" along one line, which
        both are in the embedding; or "waves" in both, sums of waves along an axis. asks: what texts are about.
        """
        from peft import LoraConfig, get_peft_model

        from vistok.lvlm.load import load_lvlm
        from vistok.lvlm.new_rows import attach
        from vistok.lvlm.packed_questions import NAME
        from vistok.lvlm.perception_texts import perception_texts
        from vistok.lvlm.row_training import trainable_token_settings

        self.codes, self.rank, self.seed = codes, rank, seed
        self.texts = perception_texts(asks, codes)
        self.family = self.texts.family
        self.model, self.processor = load_lvlm(BASE)
        tokenizer = self.processor.tokenizer
        draw = torch.Generator().manual_seed(seed)
        self.attachment = attach(tokenizer, self.model, [self.family], start=self._start(start), generator=draw)
        self._start_inputs(self._waves() if start == "waves" else self._line())
        self.model.requires_grad_(False)
        self.model.model.language_model.config._attn_implementation = NAME
        torch.manual_seed(seed)
        settings = trainable_token_settings(self.model, self.attachment)
        lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=_PROJECTIONS, **settings)
        self.adapted: Any = get_peft_model(self.model, lora)
        self.trained = {name: p for name, p in self.adapted.named_parameters() if p.requires_grad}
        self.lead = torch.tensor(tokenizer("user :").input_ids)

    def state(self) -> dict[str, Tensor]:
        """What is trained, for a checkpoint."""
        return {name: value.detach() for name, value in self.trained.items()}

    def begin(self, folder: str | Path) -> None:
        """Take rows and matrices from the checkpoint of another run. Raises: as `take`."""
        state = read_state(Path(folder))
        self.take({} if state is None else state["trained"], str(folder))

    @torch.no_grad()
    def take(self, held: Mapping[str, Tensor], origin: str) -> None:
        """Set what is trained. Raises: ValueError naming `origin` if that is not of as many codes and the same rank."""
        if {name: value.shape for name, value in held.items()} != {n: p.shape for n, p in self.trained.items()}:
            raise ValueError(
                f"{origin}: expected the checkpoint of a run with {self.codes} codes and rank {self.rank}, got "
                f"{'another' if held else 'none'}"
            )
        for name, value in held.items():
            self.trained[name].copy_(value)

    def _start(self, start: str) -> Any:
        from vistok.lvlm import row_starts
        from vistok.lvlm.point_questions import level_weights

        if start == "codebook":
            return self._line()
        if start == "waves":
            return self._waves()
        return row_starts.anchored(*level_weights(self.codes, self.processor.tokenizer.get_vocab()))

    def _line(self) -> Any:
        from vistok.lvlm import row_starts

        return row_starts.codebook(torch.linspace(-1, 1, self.codes)[:, None])

    def _waves(self) -> Any:
        from vistok.lvlm import row_starts

        return row_starts.sincos(torch.linspace(0, 1, self.codes))

    @torch.no_grad()
    def _start_inputs(self, codes_start: Any) -> None:
        """Words of distances were only ever answers, so their rows in the embedding say nothing to start codes from.

        START begins as the colon in front of every answer, END as the end of one: where codes stand, words did.
        """
        from vistok.lvlm.new_rows import matrices

        words, codes = self.processor.tokenizer.get_vocab(), self.attachment.maps[self.family.name]
        embedding = matrices(self.model)["embedding"]
        old, draw = embedding[: self.attachment.tokens[0]].float(), torch.Generator().manual_seed(self.seed)
        embedding[list(codes.codes)] = codes_start(old, len(codes), draw).to(embedding)
        for matrix in matrices(self.model).values():
            matrix[codes.begin[0]], matrix[codes.end[0]] = matrix[words[":"]], matrix[words["</s>"]]


class AdapterOptimizers:
    """Updates of what an adapter trains: LoRA, new rows of the head and those of the embedding, each at its rate."""

    def __init__(self, host: PerceptionAdapter, rates: AdapterRates) -> None:
        self.host, self.rates = host, rates
        self._parts = {"lora_": rates.rate, "lm_head": rates.head_rate, "embed_tokens": rates.embedding_rate}
        self.optimizers = [
            torch.optim.AdamW(
                [p for name, p in host.trained.items() if part in name], rate, (0.9, 0.95), weight_decay=0.0, fused=True
            )
            for part, rate in self._parts.items()
        ]

    def update(self, loss: Tensor, step: int) -> None:
        """One step down. Rates rise over `warmup` steps, and fall to 0 over the last third."""
        rates = self.rates
        factor = min(1.0, (step + 1) / max(1, rates.warmup), 3 * (rates.steps - step) / rates.steps)
        for optimizer, rate in zip(self.optimizers, self._parts.values(), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(self.host.trained.values()), rates.clip)
        for optimizer in self.optimizers:
            optimizer.step()


class PerceptionStage(Protocol):
    """What the checkpoint of a stage is of."""

    out: Path
    host: PerceptionAdapter
    optimizers: AdapterOptimizers
    step: int
    seconds: float


def write_stage(stage: PerceptionStage) -> None:
    """Write `out/last.pt`, whole or not at all."""
    state = {
        "step": stage.step,
        "seconds": stage.seconds,
        "trained": stage.host.state(),
        "optimizers": [optimizer.state_dict() for optimizer in stage.optimizers.optimizers],
    }
    write_state(stage.out, state)


def resume_stage(stage: PerceptionStage) -> None:
    """Go on from `out/last.pt` if there is one. Raises: ValueError if its rows or matrices are others."""
    state = read_state(stage.out)
    if state is None:
        return
    stage.step, stage.seconds = state["step"], state["seconds"]
    stage.host.take(state["trained"], str(stage.out))
    restore(stage.optimizers.optimizers, state["optimizers"])
