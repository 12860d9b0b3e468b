"""End-to-end vision tokenizer tuning (ETT, arXiv:2505.10562): a language model reads codes, and its loss tunes them.

z [B, N, D]: the quantizer's codes, not their ids, so that gradients pass through it;  x_I = W_2 gelu(W_1 z) [B, N, C];
L_cap = -sum_t log P(x_T,t | x_I, x_T,<t), mean over the words that carry a label;  L = L_cap + alpha L_vq.
L_vq = sum of reconstruction terms + L_quant (entropy terms among it, as the quantizer is set) + lG L_GAN.
The LeCAM regulariser that the paper gives its discriminator is not there.

Tokenizers stay as they are: `encode` passes gradients in evaluation mode as in training. B items, N visual tokens of
width D, T words, C width of the language model, K codes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vistok.lvlm.packed_questions import NAME
from vistok.lvlm.relevance import IGNORED
from vistok.lvlm.visual_generation import visual_loss
from vistok.protocols import Quantized
from vistok.train.losses import Loss


@dataclass(frozen=True)
class Batch:
    """images [B, 3, H, W] in [0, 1]; ids, labels [B, T] int64, labels as Hugging Face takes them: each stands under its
    own word, -100 under words that are not learned.

    before [P] int64: words in front of the picture. extra: further arguments of the language model, for example
    position_ids. prompt [B, P'] int64 with mask [B, P'], padded on the left: what a picture is made from ("visual").
    """

    images: Tensor
    ids: Tensor
    labels: Tensor
    before: Tensor
    extra: Mapping[str, Any] = field(default_factory=dict)
    prompt: Tensor | None = None
    mask: Tensor | None = None


class Projector(nn.Sequential):
    """Codes to the language model: D -> C, GELU, C -> C. The paper names no number of layers, two are ours."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, width))


@dataclass(frozen=True)
class VqLoss:
    """L_vq of reconstructions. Every term can be left out.

    terms: name -> (weight, function of prediction and target [B, 3, H, W]), as `make_losses` makes them or of your own,
    for example a perceptual network. quantizer: weight of the quantizer's own loss. adversarial: weight of the
    generator's loss -mean D(x^), discriminator: D, any function of images.
    """

    terms: Mapping[str, tuple[float, Loss]]
    quantizer: float = 1.0
    adversarial: float = 0.0
    discriminator: Callable[[Tensor], Tensor] | None = None

    def __call__(self, predicted: Tensor, target: Tensor, quantized: Tensor) -> dict[str, Tensor]:
        """Weighted terms by name. predicted [B, 3, H, W] unclamped; quantized []: the quantizer's loss.

        Raises: ValueError if adversarial is set and there is no discriminator.
        """
        found = {name: weight * loss(predicted, target) for name, (weight, loss) in self.terms.items() if weight}
        if self.quantizer:
            found["quantizer"] = self.quantizer * quantized
        if self.adversarial:
            if self.discriminator is None:
                raise ValueError(f"L_vq: expected a discriminator, adversarial is {self.adversarial}")
            found["adversarial"] = -self.adversarial * self.discriminator(predicted).mean()
        return found


class EndToEnd(nn.Module):
    """Tokenizer, projector and language model as one; `parts` are what a stage trains or freezes."""

    def __init__(self, tokenizer: nn.Module, language: nn.Module, *, head: nn.Module | None = None) -> None:
        """tokenizer: one of ours with `encode` and `dim`; for L_vq also a `quantizer` and a forward that reconstructs.

        language: takes inputs_embeds and labels, gives .loss and get_input_embeddings(). head: of `VisualHead`, to make
        pictures too. Raises: TypeError if the language model has no input embeddings.
        """
        super().__init__()
        host: Any = language
        if not hasattr(host, "get_input_embeddings"):
            raise TypeError(f"ett: expected a Hugging Face causal language model, got {type(host).__name__}")
        made: Any = tokenizer
        self.tokenizer = made
        self.language = host
        self.projector = Projector(made.dim, host.get_input_embeddings().weight.shape[1])
        self.head = head

    @property
    def parts(self) -> dict[str, nn.Module]:
        """What a stage names: tokenizer, projector, language, and head if there is one."""
        found = {"tokenizer": self.tokenizer, "projector": self.projector, "language": self.language}
        return found if self.head is None else {**found, "head": self.head}

    def forward(self, batch: Batch, losses: Mapping[str, float], vq: VqLoss | None = None) -> dict[str, Tensor]:
        """Weighted loss terms by name, to be summed; a loss of weight 0 is not computed.

        losses: as in `Stage`. vq: what L_vq consists of. Raises: ValueError if a loss lacks what it needs.
        """
        wanted = {name: weight for name, weight in losses.items() if weight}
        terms: dict[str, Tensor] = {}
        if "vq" in wanted:
            if vq is None:
                raise ValueError("ett: expected vq=VqLoss(...), what L_vq consists of")
            images, quantized = self._reconstruct(batch.images)
            found = vq(images, batch.images, quantized.loss)
            terms = {name: wanted["vq"] * value for name, value in found.items()}
            codes = quantized.embeds.flatten(1, -2)
        elif wanted:
            codes = self.codes(batch.images)
        if "caption" in wanted:
            terms["caption"] = wanted["caption"] * self.caption_loss(batch, codes)
        if "visual" in wanted:
            terms["visual"] = wanted["visual"] * self._visual_loss(batch, codes)
        return terms

    def codes(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in [0, 1] -> codes [B, N, D] with the gradient of the quantizer, in any mode."""
        embeds: Tensor = self.tokenizer.encode(images).embeds
        return embeds

    def caption_loss(self, batch: Batch, codes: Tensor | None = None) -> Tensor:
        """L_cap [] of the labelled words of a batch; codes [B, N, D], if they are there already."""
        loss: Tensor = self.answer(batch, codes).loss
        return loss

    def answer(self, batch: Batch, codes: Tensor | None = None) -> Any:
        """The language model's output over words before, visual tokens and words of a batch; labels likewise.

        With `packing` among extra the model attends as `packed_attention` does, in this call and no other.
        """
        visual = self.projector(self.codes(batch.images) if codes is None else codes)
        embed = self.language.get_input_embeddings()
        before = embed(batch.before).expand(len(visual), -1, -1)
        sequence = torch.cat((before, visual.to(before.dtype), embed(batch.ids)), dim=1)
        silent = batch.labels.new_full((len(visual), sequence.shape[1] - batch.labels.shape[1]), IGNORED)
        labels = torch.cat((silent, batch.labels), 1)
        settings, usual = self.language.config, self.language.config._attn_implementation
        try:
            if "packing" in batch.extra:
                settings._attn_implementation = NAME
            return self.language(inputs_embeds=sequence, labels=labels, **batch.extra)
        finally:
            settings._attn_implementation = usual

    def _visual_loss(self, batch: Batch, codes: Tensor) -> Tensor:
        if self.head is None or batch.prompt is None:
            raise ValueError("ett: expected a head (VisualHead) and batches with a prompt, to learn to make pictures")
        ids = self.tokenizer.encode(batch.images).indices
        return visual_loss(self.language, self.head, self.projector(codes), ids, batch.prompt, batch.mask)

    def _reconstruct(self, images: Tensor) -> tuple[Tensor, Quantized]:
        """Images [B, 3, H, W] and what the quantizer gave on the way, in one pass through the tokenizer."""
        quantizer = getattr(self.tokenizer, "quantizer", None)
        if quantizer is None:
            raise ValueError("ett: expected a tokenizer with a quantizer; L_vq is that of a discrete autoencoder")
        seen: list[Quantized] = []
        handle = quantizer.register_forward_hook(lambda module, inputs, output: seen.append(output))
        try:
            images = self.tokenizer(images).images
        finally:
            handle.remove()
        return images, seen[-1]


def caption_gradients(model: EndToEnd, batch: Batch) -> dict[str, float]:
    """How far L_cap alone reaches: the norm of its gradient in each child of the tokenizer, the projector and the
    language model; 0 where it does not arrive, or where nothing may train.
    """
    groups: dict[str, nn.Module] = dict(model.tokenizer.named_children())
    groups |= {"projector": model.projector, "language": model.language}
    owned = {name: [p for p in part.parameters() if p.requires_grad] for name, part in groups.items()}
    wanted = [parameter for parameters in owned.values() for parameter in parameters]
    if not wanted:
        return dict.fromkeys(groups, 0.0)
    found = iter(torch.autograd.grad(model.caption_loss(batch), wanted, allow_unused=True))
    squares = {name: [next(found) for _ in parameters] for name, parameters in owned.items()}
    return {
        name: sum(float(g.double().square().sum()) for g in gradients if g is not None) ** 0.5
        for name, gradients in squares.items()
    }
