"""The parts of ``plastibench bench``: updates, stacks, interventions, data, reinforcement learning, and a GPU."""
