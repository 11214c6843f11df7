"""From images and annotations to crops to batches: the crop store, how it is written and how it is read."""
