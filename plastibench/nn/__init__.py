"""Inspect and edit modules from the inside: units, dataflow, statistics, reinitialization, refitting."""
