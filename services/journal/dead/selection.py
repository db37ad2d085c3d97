"""Selects dead letters of the index by a filter: conditions for PostgreSQL. Pure, no IO."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from shared.amqp.dead_letters import origin
from shared.contracts.journal import Filter


@dataclass(frozen=True, slots=True)
class Selection:
    """The letters of a work queue that match a filter.

    reason_key: a group that the filter's reason names, None if it is a part of reasons.
    last: the number of the last letter, None without a bound.
    """

    queue: str
    filter: Filter
    reason_key: str | None = None
    last: int | None = None

    @property
    def target(self) -> str | None:
        """The target as the index has it, or None for all."""
        chosen = self.filter.target
        return None if chosen is None else origin(chosen) or chosen

    @property
    def is_of_groups(self) -> bool:
        """Whether it consists of whole groups, so that their counts tell how many match."""
        chosen = self.filter
        others = (chosen.client_id, chosen.since, chosen.until, self.last)
        by_group = chosen.reason is None or self.reason_key is not None
        return by_group and all(other is None for other in others)

    @property
    def indexed(self) -> "Selection":
        """The letters among which those that match are: one index has them in their order."""
        others: dict[str, Any] = {"reason": None, "client_id": None}
        if self.reason_key is not None:
            others["target"] = None
        return Selection(self.queue, self.filter.model_copy(update=others), self.reason_key)

    def where(self, first: int = 1) -> tuple[str, list[Any]]:
        """Return the condition and its arguments, which are numbered from `first`."""
        parts, arguments = [], []
        for number, (condition, argument) in enumerate(self._conditions(), first):
            arguments.append(argument)
            parts.append(condition.format(f"${number}"))
        return " AND ".join(parts), arguments

    def _conditions(self) -> Iterator[tuple[str, Any]]:
        chosen = self.filter
        yield "queue = {}", self.queue
        if self.reason_key is not None:
            yield "reason_key = {}", self.reason_key
        elif chosen.reason is not None:
            yield "strpos(lower(reason), lower({})) > 0", chosen.reason
        if self.target is not None:
            yield "target = {}", self.target
        if chosen.client_id is not None:
            yield "client_id = {}", chosen.client_id
        if chosen.since is not None:
            yield "at >= {}", chosen.since
        if chosen.until is not None:
            yield "at < {}", chosen.until
        if self.last is not None:
            yield "seq <= {}", self.last
