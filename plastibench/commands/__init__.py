"""The commands of ``plastibench``, a module per group: what arguments they take and what they call."""
