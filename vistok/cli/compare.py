"""Put all methods that do one job side by side, on the same questions or pictures."""

from vistok.cli._compare_tokenizers import tokenizers
from vistok.cli._eval_prune import prune
from vistok.registry import names, resolve

_BUDGETS = "0.5,0.25,0.1,0.05"
_EMBEDDED = "micro_lvlm"


def pruners(
    model: str = _EMBEDDED,
    *,
    methods: list[str] | None = None,
    budgets: list[str] | None = None,
    questions: int = 1000,
    tune: bool = False,
    out: str | None = None,
    device: str = "cpu",
    json: str | None = None,
) -> None:
    """Accuracy of every pruner against visual tokens per layer, at four budgets, and who is on the Pareto front.

    `vistok eval prune` over all of `vistok list`: a run that stops goes on where it stopped. A method that cannot reach
    a budget in this model says so in its row.

    Args:
        model: micro_lvlm, a folder of a LLaVA-family model with its processor, or hf:owner/name[@revision].
        methods: fewer pruners, or YAML files as `vistok eval prune` takes them.
        budgets: shares of the visual tokens to keep, per layer on average (default 0.5,0.25,0.1,0.05).
        questions: how many, about rendered scenes of the test seeds.
        tune: choose each method's settings among its `tune:` for each budget, on scenes of the validation seeds.
        out: folder of the results, if not one under prune-eval/ that belongs to these settings.
        device: cpu, cuda and so on.
        json: file to write all numbers to.
    """
    named = methods or _ready(model)
    prune(
        model,
        methods=named,
        budgets=budgets or [_BUDGETS],
        questions=questions,
        tune=tune,
        out=out,
        device=device,
        json=json,
    )


def _ready(model: str) -> list[str]:
    """Every pruner that needs no training, and for the model that ships those that were trained for it."""
    trained = {name for name in names("pruner") if resolve("pruner", name).weights is not None}
    nets = {resolve("pruner", name).method for name in trained}
    own = trained if model == _EMBEDDED else set()
    return [name for name in names("pruner") if name in own or resolve("pruner", name).method not in nets]


COMMAND = {"pruners": pruners, "tokenizers": tokenizers}
