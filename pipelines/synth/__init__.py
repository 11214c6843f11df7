"""Synthetic people in the COCO layout: the embedded default for demos, tests and benchmarks."""
