"""From a person's checkpoint and data to a folder that other tools load: fine-tune, prune, judge once, hand on.

* `prune_checkpoint(checkpoint, data, sparsity=0.8, out=...)` does it all. `DeliverySettings` has everything that can be
  set: the goal (`PruningGoal`), the method, and how both models are trained (`DeliveryTraining`).
* `inputs.read` puts a checkpoint and data together, `writing.write` judges a pruned model and writes its folders and
  its report, whichever way it was pruned.
"""

from mvp_jax.delivery.checkpoint_pruning import DeliverySettings, PrunedCheckpoint, prune_checkpoint
from mvp_jax.delivery.goals import PruningGoal
from mvp_jax.delivery.tuning import DeliveryTraining

__all__ = ["DeliverySettings", "DeliveryTraining", "PrunedCheckpoint", "PruningGoal", "prune_checkpoint"]
