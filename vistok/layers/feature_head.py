"""A linear head on grouped features that can be cut down to the features it needs (VQT, arXiv:2212.03220)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class FeatureHead(nn.Module):
    """logits = features[:, ids] W^T + b; F features in, C classes out, `select_ids` [k] int64 once it is pruned."""

    select_ids: Tensor | None

    def __init__(self, num_features: int, num_classes: int) -> None:
        """Raises: ValueError unless both are at least 1."""
        super().__init__()
        if num_features < 1 or num_classes < 1:
            raise ValueError(f"head: expected features and classes, got {num_features} and {num_classes}")
        self.num_features = num_features
        self.weight = nn.Parameter(torch.empty(num_classes, num_features))
        self.bias = nn.Parameter(torch.empty(num_classes))
        self.register_buffer("select_ids", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """W by He's rule for the fan out; b so that a class starts at a probability of 1 % if all are independent."""
        nn.init.kaiming_normal_(self.weight, a=0, mode="fan_out")
        nn.init.constant_(self.bias, -math.log(99.0))

    def forward(self, features: Tensor) -> Tensor:
        """features [B, F] -> logits [B, C]."""
        if self.select_ids is not None:
            features = features[:, self.select_ids]
        return nn.functional.linear(features, self.weight, self.bias)

    def prune(self, ids: Tensor, *, reset: bool = True) -> None:
        """Keep the features ids [k] only, in this order; train on from a fresh start, or with `reset=False` from here.

        Parameters are made anew: an optimizer needs to be told. Raises: ValueError unless ids are distinct and those of
        features, or the head is pruned already.
        """
        if self.select_ids is not None:
            raise ValueError(f"head: expected one that has all features, got one pruned to {len(self.select_ids)}")
        if ids.dtype != torch.int64 or ids.ndim != 1 or len(ids) == 0 or len(ids.unique()) != len(ids):
            raise ValueError(f"head: expected distinct ids [k] int64, got {ids.dtype} {list(ids.shape)}")
        if int(ids.min()) < 0 or int(ids.max()) >= self.num_features:
            raise ValueError(
                f"head: expected ids in 0..{self.num_features - 1}, got {int(ids.min())}..{int(ids.max())}"
            )
        self.select_ids = ids.detach().clone().to(self.weight.device)
        self.weight = nn.Parameter(self.weight.detach()[:, self.select_ids].clone())
        if reset:
            self.bias = nn.Parameter(self.bias.detach().clone())
            self.reset_parameters()

    def dead_groups(self, groups: Sequence[int]) -> list[int]:
        """Groups of features, given by their sizes, of which none is kept; empty while the head is not pruned.

        Raises: ValueError unless the sizes add up to F.
        """
        if sum(groups) != self.num_features:
            raise ValueError(f"head: expected groups of {self.num_features} features in all, got {sum(groups)}")
        if self.select_ids is None:
            return []
        owner = torch.repeat_interleave(torch.arange(len(groups)), torch.tensor(groups))
        alive = set(owner[self.select_ids.cpu()].tolist())
        return [group for group in range(len(groups)) if group not in alive]
