"""From features to the model's columns, as fitted in training."""
