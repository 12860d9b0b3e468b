"""`vistok eval adaptive`: whether an adaptive tokenizer spends tokens where they count and keeps its errors."""

from rich.console import Console
from rich.table import Table

from vistok.cli._pictures import adaptive_tokenizer, squares
from vistok.metrics.adaptive import (
    allocating,
    blurred,
    error_ratio,
    falling,
    promise,
    simpler_gets_fewer,
    smooth_and_textured,
)
from vistok.metrics.complexity import kc
from vistok.report.json_file import write_json


def adaptive(
    name: str = "karl_nano",
    images: str | None = None,
    *,
    eps: list[float] | None = None,
    count: int = 150,
    checkpoint: str | None = None,
    json: str | None = None,
) -> None:
    """Print how counts fall with eps, gains over fixed and shuffled counts, simpler against richer, verified errors.

    Args:
        name: adaptive tokenizer, for example karl_nano.
        images: folder of photographs that were not trained on (default: samples of scikit-image), cut into squares.
        eps: errors to ask for (default: those the model knows from .03 to .14).
        count: squares at most.
        checkpoint: weights other than the preset's own.
        json: file to write the numbers to.
    """
    model = adaptive_tokenizer(name, checkpoint)
    pictures, of = squares(model, images, count)
    asked = sorted(eps or [known for known in model.epsilons if 0.03 <= known <= 0.14])
    fall = falling(model, pictures, asked)
    largest = float(kc(model, pictures, model.epsilons[-1]).float().mean())
    ratio = error_ratio(model, pictures)
    table = Table("eps", "tokens", "fixed dB", "shuffled dB", "blurred fewer", "smooth fewer", "verified", title=name)
    table.add_column("over, one pass")
    table.add_column("over, verified")
    table.add_column("not satisfiable")
    table.add_column("passes")
    rows = []
    for value in asked:
        spent, kept = allocating(model, pictures, value), promise(model, pictures, value)
        blur, blur_pairs = simpler_gets_fewer(model, blurred(pictures), pictures, value)
        smooth, smooth_pairs = simpler_gets_fewer(model, *smooth_and_textured(pictures), value)
        table.add_row(
            f"{value:g}",
            f"{spent.tokens:.1f}",
            f"{spent.psnr - spent.fixed_psnr:+.2f}",
            f"{spent.psnr - spent.shuffled_psnr:+.2f}",
            f"{blur:.0%} of {blur_pairs}",
            f"{smooth:.0%} of {smooth_pairs}",
            f"{kept.tokens:.1f}",
            f"{kept.once_over:.0%}",
            f"{kept.over:.1%}",
            str(kept.unsatisfiable),
            f"{kept.passes:.2f}",
        )
        pairs = {"blurred_fewer": blur, "blurred_pairs": blur_pairs, "smooth_fewer": smooth}
        rows.append(spent._asdict() | {"verified": kept._asdict()} | pairs | {"smooth_pairs": smooth_pairs})
    console = Console(width=max(Console().width, 130))
    console.print(table)
    for line in (
        f"mean counts fall {'strictly' if fall.strictly else 'NOT strictly'} over these eps; for {fall.share:.1%} of "
        "the images they never rise by more than 2",
        f"mean count at eps {model.epsilons[-1]:g}: {largest:.1f} of {model.budget} slots",
        f"L1 with {max(1, model.budget // 16)} slots is {ratio:.2f} times that with {model.budget}",
        f"{of}; dB: pooled PSNR of learned halting over one count for all, over its own counts shuffled",
    ):
        console.print(line, highlight=False, soft_wrap=True)
    if json is not None:
        summary = {"falling": fall._asdict(), "largest_eps_tokens": largest, "error_ratio": ratio}
        write_json(json, {"tokenizer": name, "images": len(pictures), "slots": model.budget, **summary, "rows": rows})
