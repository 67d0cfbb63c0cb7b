"""An additional objective of the demo's joint encoder: where the mentioned objects lie.

Matching alone teaches so small a joint encoder which objects an image shows, but not the relations
of their places: after 5,000 steps it gives a caption and the same caption with its relation
reversed the same score. So in the last training, a head on the captions' shape words also predicts
the column and row of the object that each word names. Relations are then learnt within a few
hundred steps. The head is dropped afterwards, as the tower's heads are.

In a training from random weights this objective replaces the colours: shape words alone find nearly
all objects, and the joint encoder has not learnt colours after 3,500 steps. So it comes last.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own custom)
from torch import Tensor, nn

from edje_qdrant.demo.scenes import SHAPES
from edje_qdrant.model import EDJEModel
from edje_qdrant.training.objectives import Batch, Objectives, TrainedParts

__all__ = ["PLACES_GRID", "SceneBatch", "SceneParts"]

#: Columns and rows that a scene is divided into.
PLACES_GRID = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneBatch(Batch):
    """A batch of scenes.

    Attributes:
        places: `(b, 3, 2)` int64, column and row of each mentioned object, in the order of the
            text; -1 where there is none.
    """

    places: Tensor


class SceneParts(TrainedParts):
    """The trained parts of a model of scenes, with a head that predicts places.

    Args:
        model: Its adapter and joint encoder are trained.
        objectives: Weights of the general losses.
        weight: Of the places' loss; 0 for none.
        teacher: As in `TrainedParts`.
    """

    def __init__(
        self,
        model: EDJEModel,
        objectives: Objectives,
        *,
        weight: float,
        teacher: EDJEModel | None = None,
    ) -> None:
        super().__init__(model, objectives, teacher=teacher)
        self._weight = weight
        config = model.joint_encoder.language_model.config
        # The last third of the layers can then compare the places.
        self._layer = max(1, 2 * config.num_hidden_layers // 3)
        self.heads = nn.Linear(config.hidden_size, 2 * PLACES_GRID) if weight else None
        shapes = torch.tensor(model.tokenizer.convert_tokens_to_ids(list(SHAPES)))
        self._shapes: Tensor
        self.register_buffer("_shapes", shapes, persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted losses by name, as `TrainedParts` does."""
        losses = super().forward(batch)
        if self.heads is None:
            return losses
        assert isinstance(batch, SceneBatch)
        tokens = self.adapter(batch.vision_tokens)  # (b, m, d_text)
        states = self.joint_encoder.hidden_states(
            batch.input_ids, batch.attention_mask, tokens, layer=self._layer
        )  # (b, t + m + 1, d_text)
        # Each mention has one shape word, and they have the same order.
        row, word = torch.isin(batch.input_ids, self._shapes).nonzero(as_tuple=True)  # (w,)
        mention = torch.arange(len(row), device=row.device) - torch.searchsorted(row, row)
        where = batch.places[row, mention]  # (w, 2)
        known = where[:, 0] >= 0
        column, line = self.heads(states[row, word][known]).float().chunk(2, dim=-1)
        truth = where[known]
        entropy = F.cross_entropy(column, truth[:, 0]) + F.cross_entropy(line, truth[:, 1])
        return {
            **losses,
            "places": self._weight * entropy,
            "_column": (column.argmax(-1) == truth[:, 0]).float().mean(),
        }
