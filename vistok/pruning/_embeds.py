"""One answer of all pruners that compare tokens to tokens that are indices only."""

from torch import Tensor

from vistok.tokens import TokenTensor


def embeds_of(pruner: str, tokens: TokenTensor) -> Tensor:
    """Embeds [B, N, D]. Raises: ValueError with the remedy if there are none."""
    if tokens.embeds is None:
        raise ValueError(
            f"{pruner}: expected tokens with embeds, got indices only; look them up first: "
            "tokens.replace(embeds=quantizer.lookup(tokens.indices))"
        )
    return tokens.embeds
