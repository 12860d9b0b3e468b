"""How a small SEED model begins its training: matrices drawn with a spread that suits their width."""

from typing import Any

from torch import nn


def start_by_width(model: Any) -> None:
    """Draw the Q-Former's and the projections' matrices anew, with variance 1 / inputs.

    BERT's standard deviation of .02, which they come with, suits its 768 inputs. For 96 it is a fifth of this, and the
    first hundred steps are lost or diverge.
    """
    for part in (model.Qformer, model.vision_proj, model.text_proj):
        for layer in part.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
