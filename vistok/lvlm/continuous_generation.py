"""Next-token prediction over continuous image tokens (Ming-UniVision, arXiv:2510.06590, section 3), any causal LM.

A language model reads semantic tokens through `linear_proj`; at each place of an image, its hidden state conditions a
rectified-flow head, which draws the next latent; the tokenizer's causal decoder makes of it the next semantic token.
Nothing goes through pixels between rounds. B dialogues, R rows of guidance, N tokens of an image, H width of the
language model, S of semantic tokens, C latent channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from vistok.layers.flow_sampler import Guidance, euler_times, flow_loss, sample
from vistok.layers.rectified_flow import RectifiedFlowHead
from vistok.rows import grid_coords
from vistok.tokenizers.mingtok import MingTok
from vistok.tokens import TokenTensor

Kind = Literal["text", "image", "frame", "made"]
# Which rows of guidance see a part of the last turn: with everything, without it, without its text.
_SEEN: dict[Kind, tuple[bool, bool, bool]] = {
    "text": (True, False, False),
    "image": (True, False, True),
    "frame": (True, True, True),
    "made": (True, True, True),
}


class Segment(NamedTuple):
    """Part of a dialogue: embeds [B, n, H].

    kind: "text" or "image" of a user, a "frame" around them (roles, marks, answers), or an image that was "made" here.
    """

    embeds: Tensor
    kind: Kind


class GeneratedImage(NamedTuple):
    """latents and semantic tokens of an image; the tokenizer decodes either."""

    latents: TokenTensor
    semantic: TokenTensor


class ImageHead(nn.Module):
    """What joins a language model and a continuous tokenizer, with the authors' names of weights."""

    def __init__(
        self, semantic_dim: int, hidden: int, channels: int, *, width: int = 3072, depth: int = 12, mlp_ratio: float = 4
    ) -> None:
        """semantic_dim S, hidden H, channels C; width, depth, mlp_ratio: of the rectified-flow head."""
        super().__init__()
        self.sizes = (semantic_dim, hidden, channels)
        self.linear_proj = nn.Sequential(nn.Linear(semantic_dim, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.vis_head = nn.Sequential(nn.Linear(hidden, width), nn.LayerNorm(width, eps=1e-6))
        self.diffloss = RectifiedFlowHead(channels, width, width=width, depth=depth, mlp_ratio=mlp_ratio)

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return next(self.parameters()).dtype

    def rename_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The head's tensors out of a whole Ming-UniVision file, for `vistok.weights.load_weights`."""
        named = {name.removeprefix("model."): value for name, value in tensors.items()}
        return {name: value for name, value in named.items() if name.partition(".")[0] in dict(self.named_children())}


class ContinuousGenerator(nn.Module):
    """A causal language model of transformers, a continuous tokenizer and the head between them."""

    def __init__(self, language_model: PreTrainedModel, tokenizer: MingTok, head: ImageHead) -> None:
        """Raises: ValueError if the head's widths are not those of model and tokenizer."""
        super().__init__()
        self.language_model: Any = language_model
        self.tokenizer, self.head = tokenizer, head
        words = language_model.get_input_embeddings().weight
        assert isinstance(words, Tensor)
        hidden = words.shape[1]
        expected = (tokenizer.semantic_dim, hidden, tokenizer.dim)
        if head.sizes != expected:
            raise ValueError(f"image head: expected semantic_dim, hidden and channels {expected}, got {head.sizes}")

    def text(self, ids: Tensor) -> Segment:
        """ids [B, n] of what a user says."""
        return Segment(self.language_model.get_input_embeddings()(ids), "text")

    def frame(self, ids: Tensor) -> Segment:
        """ids [B, n] of roles, marks of an image's begin and end, and of answers: guidance never hides them."""
        return Segment(self.language_model.get_input_embeddings()(ids), "frame")

    def image(self, semantic: TokenTensor) -> Segment:
        """Tokens of the tokenizer's `semantic`, as an image of the user. Raises: ValueError for another width."""
        embeds, width = semantic.embeds, self.tokenizer.semantic_dim
        if embeds is None or embeds.shape[-1] != width:
            raise ValueError(f"image: expected semantic tokens [B, N, {width}], got {semantic}")
        return Segment(self._project(embeds), "image")

    def dialogue(self) -> "Dialogue":
        """A new dialogue, or B of the same shape side by side."""
        return Dialogue(self)

    def flow_loss(
        self,
        context: Sequence[Segment],
        latents: TokenTensor,
        *,
        semantic: TokenTensor | None = None,
        told: Tensor | None = None,
        weights: Tensor | None = None,
        repeats: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The training loss of images [B, N, C] behind a context, all places at once: [].

        Gradients reach the language model, the head and the semantic decoder, as far as they are not frozen.
        semantic: those of the latents where a frozen tokenizer made them before. told [B] bool: items that see the
        user's text and images; the others learn what guidance compares with. weights [B, N], repeats, generator: of
        `vistok.layers.flow_sampler.flow_loss`.
        Raises: ValueError without a context: its last token predicts the first of the image.
        """
        z = latents.embeds
        assert z is not None
        if not sum(part.embeds.shape[1] for part in context):
            raise ValueError("flow_loss: expected a context of at least one token before the image")
        image = self.image(self.tokenizer.semantic(latents) if semantic is None else semantic).embeds[:, :-1]
        sequence = torch.cat([*(part.embeds for part in context), image], 1)
        hidden = self.language_model.base_model(
            inputs_embeds=sequence,
            attention_mask=None if told is None else _without_the_turn(context, told, image.shape[1]),
            position_ids=torch.arange(sequence.shape[1], device=sequence.device)[None],
            use_cache=False,
        ).last_hidden_state
        conditions = self.head.vis_head(hidden[:, -z.shape[1] :].to(self.head.dtype))
        return flow_loss(
            self.head.diffloss, z.detach(), conditions, weights=weights, repeats=repeats, generator=generator
        )

    def _project(self, semantic: Tensor) -> Tensor:
        projected: Tensor = self.head.linear_proj(semantic.to(self.head.dtype))
        return projected.to(self.language_model.get_input_embeddings().weight.dtype)


class Dialogue:
    """Rounds of text and images over one cache: each token is read once, images that were made stay in context.

    Guidance compares rows that differ by what they may look at and by nothing else. A row without the last turn sees
    neither its text nor its images, nor images made in earlier rounds (the authors' rule); a row without text sees all
    images. To restore a dialogue, read its images that were made with kind "made".
    """

    def __init__(self, generator: ContinuousGenerator) -> None:
        self.generator = generator
        self.cache = DynamicCache(config=generator.language_model.config)
        self._rows = 1
        self._made = torch.zeros(0, dtype=torch.bool)  # [L] bool: places of images that were made
        self._visible = torch.zeros(1, 0, dtype=torch.bool)  # [R, L] bool
        self._hidden: Tensor | None = None  # [R * B, H] of the last token

    @property
    def length(self) -> int:
        """Tokens in context."""
        return self._visible.shape[1]

    @torch.no_grad()
    def read(self, *segments: Segment) -> Tensor:
        """Take segments into the context -> logits [B, vocabulary] of the next word. Raises: ValueError for none."""
        self._batch(segments)
        for segment in segments:
            self._push(segment)
        model = self.generator.language_model
        return _as_the_model(model.get_output_embeddings()(self._last()), model.config.get_text_config())

    @torch.no_grad()
    def make_image(
        self,
        turn: Sequence[Segment],
        grid: tuple[int, int],
        *,
        guidance: Guidance | None = None,
        temperature: float = 1.0,
        steps: int = 16,
        time_shift: float = 1.0,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> GeneratedImage:
        """Read a user's turn and make an image of grid (gh, gw), which stays in context behind it.

        guidance: scales as given here; None = none, a single row. With guidance the turn ends with a frame, as chats
        do: the image starts from what the model says of the last token, which all rows must have read. noise
        [B, N, C]: to begin with, else drawn with `generator` times `temperature`. steps, time_shift: of
        `vistok.layers.flow_sampler.sample`.
        Raises: ValueError for a grid, steps, a time_shift or noise that does not fit, a turn whose end guidance would
        see, or without anything to go on from; the context is as before then.
        """
        tokenizer, head = self.generator.tokenizer, self.generator.head
        if min(grid) < 1:
            raise ValueError(f"make_image: expected a grid of at least 1 x 1, got {grid}")
        euler_times(steps, time_shift)
        shape = (self._batch(turn), grid[0] * grid[1], tokenizer.dim)
        if noise is not None and tuple(noise.shape) != shape:
            raise ValueError(f"make_image: expected noise {list(shape)}, got {list(noise.shape)}")
        ends = [segment.kind for segment in turn if segment.embeds.shape[1]][-1:]
        if guidance is not None and ends in (["text"], ["image"]):
            raise ValueError(
                "make_image: expected a turn that ends with a frame, such as the mark of an image's begin: guidance "
                "would see its last token"
            )
        looks_at_images = bool(self._made.any()) or any(segment.kind == "image" for segment in turn)
        self._fork(1 if guidance is None else 3 if looks_at_images else 2)
        try:
            for segment in turn:
                self._push(segment)
            batch, noise = shape[0], self._noise(noise, shape, temperature, generator)
            stream, latents, semantic = tokenizer.stream(), list[Tensor](), list[Tensor]()
            for start in noise.unbind(1):
                condition = head.vis_head(self._last().to(head.dtype))
                rows = condition.unflatten(0, (self._rows, batch))
                z = sample(head.diffloss, rows, start, guidance, steps=steps, time_shift=time_shift)
                latents.append(z)
                semantic.append(stream.step(z[:, None])[:, 0])
                self._push(Segment(self.generator._project(semantic[-1][:, None]), "made"))
        finally:
            self._join()
        patch = tokenizer.patch
        spec = replace(tokenizer.spec, grid=grid, image_size=(grid[0] * patch, grid[1] * patch))
        coords = grid_coords(*grid, batch=batch, device=noise.device)
        tokens = TokenTensor(spec=spec, embeds=torch.stack(latents, 1), coords=coords)
        semantic_tokens = replace(tokens, spec=tokenizer.semantic_spec(spec), embeds=torch.stack(semantic, 1))
        return GeneratedImage(tokens, semantic_tokens)

    def _fork(self, rows: int) -> None:
        """Copy the one row of the context, whose tokens have seen everything, to all rows of guidance."""
        if self.length and rows > 1:
            assert self._hidden is not None
            places = torch.arange(len(self._hidden), device=self._hidden.device).repeat(rows)
            self.cache.batch_select_indices(places)
            self._hidden = self._hidden[places]
        self._visible = self._visible.repeat(rows, 1)
        if rows > 1:
            self._visible[1] &= ~self._made
        self._rows = rows

    def _join(self) -> None:
        """Keep the row that has seen everything."""
        if self._hidden is not None and self._rows > 1:
            batch = len(self._hidden) // self._rows
            self.cache.batch_select_indices(torch.arange(batch, device=self._hidden.device))
            self._hidden = self._hidden[:batch]
        self._visible = torch.ones_like(self._visible[:1])
        self._rows = 1

    def _push(self, segment: Segment) -> None:
        embeds = segment.embeds
        batch, new = embeds.shape[:2]
        if not new:
            return
        past, device = self.length, embeds.device
        more = torch.tensor(_SEEN[segment.kind][: self._rows], device=device)[:, None].expand(-1, new)
        self._visible = torch.cat([self._visible.to(device), more], 1)
        self._made = torch.cat([self._made.to(device), torch.full((new,), segment.kind == "made", device=device)])
        base: Any = self.generator.language_model.base_model
        out = base(
            inputs_embeds=embeds.repeat(self._rows, 1, 1),
            attention_mask=self._visible.repeat_interleave(batch, 0).long(),
            position_ids=torch.arange(past, past + new, device=device)[None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self._hidden = out.last_hidden_state[:, -1]

    def _batch(self, segments: Sequence[Segment]) -> int:
        """B of the context and the segments behind it; refuses them before the first is read."""
        sizes = [len(segment.embeds) for segment in segments if segment.embeds.shape[1]]
        if self._hidden is not None:
            sizes.insert(0, len(self._hidden))
        if not sizes:
            raise ValueError("dialogue: expected at least one token to go on from, read or give a turn")
        for size in sizes:
            if size != sizes[0]:
                raise ValueError(f"dialogue: expected {sizes[0]} items as before, got {size}")
        return sizes[0]

    def _last(self) -> Tensor:
        assert self._hidden is not None
        return self._hidden

    def _noise(
        self, noise: Tensor | None, shape: tuple[int, ...], temperature: float, generator: torch.Generator | None
    ) -> Tensor:
        device = self._last().device
        if noise is None:
            drawn = torch.randn(shape, generator=generator, device=generator.device if generator else device)
            return drawn.to(device) * temperature
        return noise.to(device)


def _without_the_turn(context: Sequence[Segment], told: Tensor, image: int) -> Tensor:
    """The attention mask [B, L] int64 of `flow_loss`: items that are not told see as the second row of guidance."""
    seen = [torch.full((part.embeds.shape[1],), _SEEN[part.kind][1], device=told.device) for part in context]
    always = torch.cat([*seen, torch.ones(image, dtype=torch.bool, device=told.device)])
    return (told[:, None] | always).long()


def _as_the_model(logits: Tensor, config: Any) -> Tensor:
    """What a language model makes of its head's logits: Cohere and Granite scale them, Gemma bends them to a cap."""
    if (factor := getattr(config, "logit_scale", None)) is not None:
        logits = logits * factor
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = cap * (logits / cap).tanh()
    return logits
