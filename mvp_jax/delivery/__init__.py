"""From a person's checkpoint and data to a folder that other tools load: fine-tune, prune, judge once, hand on."""
