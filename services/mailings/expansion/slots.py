"""Limits how many slices run at a time: many of small postings, and a few of lists."""

import asyncio


class NoSlotError(Exception):
    """The posting is a list, and other lists use all slots."""


class Slots:
    """The free slots for small postings and for lists.

    `changed` is set when another posting may be claimed.
    """

    def __init__(self, small: int, lists: int) -> None:
        self.small = small
        self.changed = asyncio.Event()
        self._lists = lists

    @property
    def lists(self) -> int:
        """Return the free slots for lists. Postings that become lists during a claim use more."""
        return max(self._lists, 0)

    def add(self, number: int, *, is_list: bool) -> None:
        """Change the number of free slots."""
        if is_list:
            self._lists += number
        else:
            self.small += number


class Slot:
    """The slot of one slice.

    is_list: whether it is a slot for lists.
    needs_list: whether the posting is known to be a list.
    """

    def __init__(self, slots: Slots, *, is_list: bool) -> None:
        self.is_list = self.needs_list = is_list
        self._slots = slots
        slots.add(-1, is_list=is_list)

    def extend(self) -> bool:
        """Change it into a slot for lists, and return whether that was possible."""
        self.needs_list = True
        if not self.is_list:
            if not self._slots.lists:
                return False
            self.release()
            self.is_list = True
            self._slots.add(-1, is_list=True)
        return True

    def release(self) -> None:
        """Make it free for another slice. The posting of a list may be due again."""
        if self.is_list or not self._slots.small:
            self._slots.changed.set()
        self._slots.add(1, is_list=self.is_list)
