"""Interventions, one module per method.

A new method is one new module in this folder: a dataclass with the decorator ``register_intervention``. Its ``kind``,
``extra_memory`` and ``extra_compute`` are class attributes. Importing this package imports none of the modules.
"""
