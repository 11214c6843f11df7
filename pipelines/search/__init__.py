"""Hyperparameter search: Ray Tune and Optuna over training runs."""
