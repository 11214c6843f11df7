"""From a network and a crop store to predictions, metrics and pictures."""
