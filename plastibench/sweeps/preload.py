"""Modules that the process server of the local engine imports before it forks the processes of runs.

Importing this module makes the importing process the leader of a new session, so that Ctrl-C in a terminal does not
reach it or the processes that it forks. Nothing here may start threads or initialize a GPU: a forked process cannot use
either.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os

if hasattr(os, "setsid"):
    with contextlib.suppress(PermissionError):  # it is the leader of its session already
        os.setsid()

_MODULES = (
    "torch._dynamo",  # imported by the first optimizer, which takes as long as importing torch
    "plastibench.cli.resume",
    "plastibench.training.runner",
    "plastibench.leaderboard",
    "plastibench.metrics.compute",
    "plastibench.agents.classifier",
)

for _name in _MODULES:
    with contextlib.suppress(Exception):  # the run that needs it reports the error
        importlib.import_module(_name)
gc.freeze()  # so that the garbage collector of a forked process does not visit and copy shared objects
