"""Trainers, the learner they drive, their replay buffers, and the runner that owns the run folder."""
