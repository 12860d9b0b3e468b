"""Decoding a quarter of KARL's slots: halted tokens dropped against halted tokens masked, after both were compared."""

import time
from collections.abc import Callable, Iterator

import torch

import vistok
from vistok.bench.timing import Timing, in_turn
from vistok.tokenizers.karl import Karl

_KEPT = 0.25
# Widths of karl_tiny; the depth only scales both sides alike.
_SIZES = {"encoder_layers": 1, "decoder_layers": 4, "codebook_size": None, "base_tokenizer": {"method": "pixels"}}


def run(rounds: int = 7, batch: int = 4) -> Iterator[tuple[str, list[Timing]]]:
    """Yield the transformer decoder at 256 and 512 slots, 25 % of them kept; the base tokenizer's part is the same.

    Raises: AssertionError if masked and dropped decoding differ by more than 1e-4.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            torch.manual_seed(0)
            model: Karl = vistok.tokenizer("karl_tiny", **_SIZES).eval()  # type: ignore[attr-defined]
            for slots in (256, 512):
                yield (
                    f"{batch} x {slots} slots, 25 % kept",
                    in_turn(_candidates(model, batch, slots), rounds, clock=time.process_time),
                )
    finally:
        torch.set_num_threads(threads)


def _candidates(model: Karl, batch: int, slots: int) -> dict[str, Callable[[], object]]:
    generator = torch.Generator().manual_seed(slots)
    embeds = torch.randn(batch, slots, model.dim, generator=generator)
    order = torch.rand(batch, slots, generator=generator).argsort(1)
    kept = order[:, : int(_KEPT * slots)].sort(1).values
    mask = torch.zeros(batch, slots, dtype=torch.bool).scatter_(1, kept, True)
    every = torch.arange(slots).expand(batch, -1)
    few = embeds.gather(1, kept[..., None].expand(-1, -1, model.dim))
    grid = (model.trained_grid[0], model.trained_grid[1])

    def dropped() -> torch.Tensor:
        return model.decode_latents(few, kept, None, grid)

    def masked() -> torch.Tensor:
        return model.decode_latents(embeds, every, mask, grid)

    torch.testing.assert_close(dropped(), masked(), rtol=0, atol=1e-4)
    return {"compact (halted dropped)": dropped, "masked": masked}
