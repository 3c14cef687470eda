"""From a person's checkpoint and data to a folder that other tools load: fine-tune, prune, judge once, hand on.

* `prune_checkpoint(checkpoint, data, sparsity=0.8, out=...)` does it all. `DeliverySettings` has everything that can be
  set: the goal (`PruningGoal`), the method, and how both models are trained (`DeliveryTraining`).
* `prune_from_bank(bank, data, out=...)` prunes a bank's model for one new task by a vote of the entries nearest to it;
  `BankPruningSettings` has what can be set. `bank_tasks.add_task` adds a task of a person's own to a bank.
* `inputs.read` puts a checkpoint and data together, `writing.write` judges a pruned model and writes its folders and
  its report, whichever way it was pruned.
"""

from mvp_jax.delivery.bank_pruning import BankPruned, BankPruningSettings, prune_from_bank
from mvp_jax.delivery.checkpoint_pruning import DeliverySettings, PrunedCheckpoint, prune_checkpoint
from mvp_jax.delivery.goals import PruningGoal
from mvp_jax.delivery.tuning import DeliveryTraining

__all__ = [
    "BankPruned",
    "BankPruningSettings",
    "DeliverySettings",
    "DeliveryTraining",
    "PrunedCheckpoint",
    "PruningGoal",
    "prune_checkpoint",
    "prune_from_bank",
]
