"""`vistok eval retrieval`: how often a picture of a scene finds its caption, from embeddings and from codes."""

from rich.console import Console
from rich.table import Table

from vistok import tokenizer as make_tokenizer
from vistok.data.scenes.splits import SPLITS, seeds_of
from vistok.metrics.scene_retrieval import SceneRetrieval, scene_retrieval
from vistok.report.json_file import write_json

_LEARNED_FROM = "train"


def retrieval(
    name: str = "seed_nano",
    *,
    scenes: int = 500,
    splits: list[str] | None = None,
    checkpoint: str | None = None,
    json: str | None = None,
) -> None:
    """Print recall at 1, 5 and 10 between pictures of held-out scenes and their captions, and the use of the codebook.

    Args:
        name: tokenizer that embeds pictures, codes and captions, for example seed_nano.
        scenes: scenes of each split; each is looked for among all of them.
        splits: of the scenes: validation, test, heldout (pairs of colour and shape never seen); default the last two.
        checkpoint: weights other than the preset's own.
        json: file to write the numbers to.
    """
    asked = splits or ["test", "heldout"]
    for split in asked:
        if split not in SPLITS or split == _LEARNED_FROM:
            known = ", ".join(known for known in SPLITS if known != _LEARNED_FROM)
            raise ValueError(f"eval retrieval: expected splits among {known}, got {split!r}")
    if scenes < 1:
        raise ValueError(f"eval retrieval: expected at least 1 scene, got {scenes}")
    model = make_tokenizer(name, pretrained=checkpoint is None, checkpoint=checkpoint)
    if hasattr(model, "eval"):
        model.eval()
    found = {split: scene_retrieval(model, seeds_of(split)[:scenes]) for split in asked}
    console = Console(width=max(Console().width, 100))
    console.print(_table(name, scenes, found))
    for split, result in found.items():
        book = result.health.report()
        console.print(
            f"{split}: {result.ceiling:.1%} of the captions differ, the most that R@1 can be; "
            f"{book['codes'] - book['dead_codes']:,} of {book['codes']:,} codes used by {book['tokens']:,} tokens, "
            f"perplexity {book['perplexity']:,.1f} = {book['bits_per_token']:.2f} bits a token",
            highlight=False,
            soft_wrap=True,
        )
    if json is not None:
        splits_found = {split: result.report() for split, result in found.items()}
        write_json(json, {"tokenizer": name, "checkpoint": checkpoint, "splits": splits_found})


def _table(name: str, scenes: int, found: dict[str, SceneRetrieval]) -> Table:
    table = Table("scenes", "from", title=f"{name}: recall among {scenes} scenes and their captions, %")
    for direction in ("picture to caption", "caption to picture"):
        for k in (1, 5, 10):
            table.add_column(f"{direction} R@{k}" if k == 1 else f"R@{k}", justify="right")
    for split, result in found.items():
        for source, recall in (("embeddings", result.embeddings), ("codes", result.codes)):
            shares = [*recall.image_to_text.values(), *recall.text_to_image.values()]
            table.add_row(split, source, *(f"{100 * share:.1f}" for share in shares))
    return table
