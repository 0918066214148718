"""All actions of a task, stored compactly: a resumed run replays them to restore the environments."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import Space, spaces

Array = npt.NDArray[Any]
_ROWS = 4096  # steps per block


class ActionLog:
    """Log of actions that grows in blocks.

    Discrete actions are stored in the smallest sufficient integer type, other actions in their own dtype. Actions are
    copied, because an array made from a tensor would keep that tensor alive.
    """

    def __init__(self, space: Space[Any]) -> None:
        """Create an empty log.

        Args:
            space: The action space of one environment.
        """
        self._space_dtype = space.dtype
        self._dtype = np.dtype(space.dtype)
        if isinstance(space, spaces.Discrete):
            kinds = (np.dtype(np.uint8), np.dtype(np.int16), np.dtype(np.int32))
            self._dtype = next((kind for kind in kinds if space.n <= np.iinfo(kind).max + 1), self._dtype)
        self._blocks: list[Array] = []
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def nbytes(self) -> int:
        """Memory of the log in bytes."""
        return sum(block.nbytes for block in self._blocks)

    def append(self, action: Array) -> None:
        """Add the actions of one step of all environments. [envs, ...]."""
        row = self._length % _ROWS
        if not row:
            self._blocks.append(np.empty((_ROWS, *action.shape), self._dtype))
        self._blocks[-1][row] = action
        self._length += 1

    def to_array(self) -> Array:
        """All actions in the log's own type. [steps, envs, ...]."""
        if not self._blocks:
            return np.empty(0, self._dtype)
        return np.concatenate(self._blocks)[: self._length]

    def restored(self, saved: Array) -> Array:
        """Actions in the type of the action space, from the output of :meth:`to_array`."""
        return saved.astype(self._space_dtype, copy=False)
