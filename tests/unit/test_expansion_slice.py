"""Composing the messages of a page."""

import asyncio
from collections.abc import Iterator
from typing import Any, cast

from services.mailings.domain import Recipient
from services.mailings.expansion.slice import COMPOSE_DURATION, compose
from services.mailings.messages import Composer


class SlowComposer:
    """A composer and its clock: every recipient takes COMPOSE_DURATION."""

    def __init__(self) -> None:
        self.composed = 0

    def compose(self, _: Recipient) -> Iterator[Any]:
        self.composed += 1
        return iter(())

    def now(self) -> float:
        raise AssertionError("composing does not need the time of day")

    def monotonic(self) -> float:
        return self.composed * COMPOSE_DURATION


async def test_finding_c11_other_tasks_run_between_the_recipients_of_slow_messages() -> None:
    composer = SlowComposer()
    seen = set()

    async def observe() -> None:
        while True:
            seen.add(composer.composed)
            await asyncio.sleep(0)

    observer = asyncio.create_task(observe())
    recipients = [Recipient.of({"id": str(number)}, "item") for number in range(5)]
    await compose(cast("Composer", composer), recipients, composer)
    observer.cancel()

    assert composer.composed == 5
    assert seen >= set(range(5))
