"""Training of SEED's tokenizer (arXiv:2307.08041; SEED-2: arXiv:2310.01218) on rendered scenes; resumes to the bit.

Stage I, "contrastive": the causal Q-Former and its projections learn which caption belongs to which picture. Stage II,
"codebook": all of that stays as it is; codes, and what is reconstructed from them, learn. The vision tower is frozen
throughout, so what it says about the scenes is worked out once (`scene_features`). Of a stage's loss see `seed_losses`.

Every draw of a step comes from (seed, step), so the state is weights, optimizer of the stage, and step.
B scenes of a batch, N tokens of the tower, C their width, Q queries.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vistok.data.scenes.splits import seeds_of
from vistok.metrics.retrieval import retrieval
from vistok.registry import create
from vistok.train.checkpoint import read_state, write_state
from vistok.train.export import write_half
from vistok.train.metrics_log import append_row, drop_rows_after
from vistok.train.optimizers import adamw
from vistok.train.scene_features import SceneFeatures, cached_features, scene_features
from vistok.train.seed_losses import StageTwoWeights, embedding_loss, reconstruction_loss
from vistok.weights import load_weights

OnStep = Callable[[int, dict[str, float]], None]
