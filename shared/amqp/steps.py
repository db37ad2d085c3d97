"""Recognises a message that is delivered again although its next copy exists.

If a copy in a tier is confirmed but the ack of its original is lost, the original is delivered
again. Without this memory, both would be retried until the end: two chains, two dead letters.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel

from shared.amqp.ack_batcher import AckBatcher

# Finished steps in memory, about 1 kB each. A repeat follows within seconds of a lost connection.
MAX_STEPS: Final = 10_000

# The logical id, the chain, the number of the step, and a hash of the body.
Key = tuple[str, str, int, int]


@dataclass(slots=True, eq=False)
class Step:
    """The handling of one delivery, up to its next copy or its dead letter.

    finished: the copy or dead letter is confirmed. fact: the fact about the outcome. letter: the
    fact about the dead letter.
    """

    acks: AckBatcher
    finished: bool = False
    fact: BaseModel | None = None
    letter: BaseModel | None = None


class Steps:
    """The steps in progress, and the last finished ones, of one consumer."""

    def __init__(self) -> None:
        self._steps: OrderedDict[Key, Step] = OrderedDict()

    def done_by(self, key: Key, acks: AckBatcher) -> Step | None:
        """Return the step that makes this delivery a repeat, or None.

        It is finished, or another delivery of the same channel is in progress. After a lost channel
        that one is delivered again itself, so it counts only while the channel is open.
        """
        step = self._steps.get(key)
        if step is None or step.finished:
            return step
        return step if step.acks is acks and not acks.lost else None

    def begin(self, key: Key, acks: AckBatcher) -> Step:
        """Return the step of a delivery.

        A copy is recorded as in progress, because a tier can hold several of it. The original can
        be new although its ids are not, so an earlier step is forgotten.
        """
        step = Step(acks)
        if key[2]:
            self._keep(key, step)
        elif self._steps:
            self._steps.pop(key, None)
        return step

    def end(self, key: Key, step: Step) -> None:
        """Remember a finished step, and forget any other."""
        if step.finished:
            self._keep(key, step)
        elif self._steps and self._steps.get(key) is step:
            del self._steps[key]

    def _keep(self, key: Key, step: Step) -> None:
        self._steps[key] = step
        if len(self._steps) > MAX_STEPS:
            self._steps.popitem(last=False)
