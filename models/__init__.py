"""Networks, losses, the heatmap codec and skeletons: torch and numpy only, nothing of Ray, MLflow or pyarrow."""
