"""Agents: networks with their optimizers and updates.

A new agent is one new module in this folder: a dataclass with the decorator ``register_agent``. Importing this package
imports none of the modules.
"""
