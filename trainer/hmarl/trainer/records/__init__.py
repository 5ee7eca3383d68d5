"""What a run keeps: checkpoints, metrics, plots."""
