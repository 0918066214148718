"""Experiment trackers (wandb, MLflow, trackio) that can receive the metrics of a run; each is an optional library."""
