"""A shared limit on something that requests hold, such as bytes in memory."""

from __future__ import annotations

import threading
import time


class Budget:
    """An amount that is given out in parts, and never more of it than there is.

    Args:
        amount: how much there is.
    """

    def __init__(self, amount: int) -> None:
        self.amount = amount
        self._free = amount
        self._changed = threading.Condition()

    @property
    def taken(self) -> int:
        """How much is given out."""
        return self.amount - self._free

    def take(self, part: int, deadline: float | None = None) -> bool:
        """Take a part of it.

        Args:
            part: how much.
            deadline: until when to wait for it, as of `time.monotonic`; None: not at all.

        Returns:
            Whether it was there; if not, nothing was taken.
        """
        with self._changed:
            while part > self._free:
                left = 0.0 if deadline is None else deadline - time.monotonic()
                if part > self.amount or left <= 0:
                    return False
                self._changed.wait(left)
            self._free -= part
            return True

    def give(self, part: int) -> None:
        """Give back what was taken."""
        with self._changed:
            self._free += part
            self._changed.notify_all()
