"""Presets: one YAML file per named configuration, read with importlib.resources."""
