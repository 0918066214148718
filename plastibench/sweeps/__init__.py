"""The sweeps of the paper's figures: one specification per figure and size."""
