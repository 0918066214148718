"""Interventions, one module per method.

To add a method, add a module to this folder with a dataclass decorated with ``register_intervention``. Its ``kind``,
``extra_memory`` and ``extra_compute`` are class attributes. Importing this package imports none of the modules.
"""
