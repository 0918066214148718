"""Experiment trackers that a run also sends its metrics to, each an optional library: wandb, MLflow, trackio."""
