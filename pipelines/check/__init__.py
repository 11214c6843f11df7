"""The check of new data before a night is spent on it: samples to look at, and a few persons learned by heart."""
