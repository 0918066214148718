"""Environments: supervised task streams and reinforcement learning.

To add an environment, add a module to this folder with a dataclass decorated with ``register_env``. Importing this
package registers every built-in task stream with gymnasium and imports none of the modules.
"""

from __future__ import annotations

import gymnasium

from plastibench.config.registry import envs

for _name, _entry in envs.builtin().items():
    if _entry.kind == "task stream":
        gymnasium.register(
            f"plastibench/{_name}-v0",
            entry_point="plastibench.envs.task_stream_config:make_task_stream",
            kwargs={"name": _name},
        )
