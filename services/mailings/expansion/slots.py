"""Limits how many slices run at a time: many of small postings, and a few of lists."""

import asyncio


class Slots:
    """The free slots for small postings and for lists.

    `changed` is set when another posting may be claimed.
    """

    def __init__(self, small: int, lists: int) -> None:
        self.small = small
        self.lists = lists
        self.changed = asyncio.Event()


class Slot:
    """The slot of one slice."""

    def __init__(self, slots: Slots, *, is_list: bool) -> None:
        self.is_list = is_list
        self._slots = slots
        self._add(-1)

    def extend(self) -> bool:
        """Change it into a slot for lists, and return whether that was possible."""
        if not self.is_list:
            if not self._slots.lists:
                return False
            self.release()
            self.is_list = True
            self._add(-1)
        return True

    def release(self) -> None:
        """Make it free for another slice. The posting of a list may be due again."""
        if self.is_list or not self._slots.small:
            self._slots.changed.set()
        self._add(1)

    def _add(self, number: int) -> None:
        if self.is_list:
            self._slots.lists += number
        else:
            self._slots.small += number
