"""From MLflow to one page that compares runs."""
