"""A limit on the memory of untrusted expressions."""

from typing import Any, Final

# Characters of an intermediate text; no consumer of ours accepts a larger one.
MAX_SIZE: Final = 1_048_576
# Bytes of the values that one evaluation creates: several times the largest context.
MAX_BYTES: Final = 32 << 20


class TooLargeError(ValueError):
    """A result is too large. The text contains no value."""


class Meter:
    """Counts the bytes of the values that one evaluation creates, even if they are freed."""

    def __init__(self) -> None:
        self._left = MAX_BYTES

    def restart(self) -> None:
        """Start to count for a new evaluation."""
        self._left = MAX_BYTES

    def count(self, size: int) -> None:
        """Count bytes.

        Raises:
            TooLargeError: there are more than MAX_BYTES.
        """
        self._left -= size
        if self._left < 0:
            raise TooLargeError(f"the values take more than {MAX_BYTES >> 20} MiB")

    def count_value(self, value: Any) -> None:
        """Count the bytes of a value. A part that it contains twice counts twice.

        This also limits the time to compare and to hash the value, which nothing can interrupt.

        Raises:
            TooLargeError: there are more than MAX_BYTES.
        """
        parts = [value]
        while parts:
            part = parts.pop()
            self.count(part.__sizeof__())
            if isinstance(part, dict):
                parts += part
                parts += part.values()
            elif isinstance(part, list | tuple):
                parts += part
