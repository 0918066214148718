"""Agents: networks with their optimizers and update rules.

To add an agent, add a module to this folder with a config dataclass decorated with ``register_agent``. Importing this
package does not import any of its modules.
"""
