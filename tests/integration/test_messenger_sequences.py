"""U6: the events of a user are numbered without gaps, whatever happens to those who append them."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from services.subscriptions.messenger.domain import (
    AppendedEvent,
    NewEvent,
    Outcome,
    UserMessage,
    message_event,
)
from services.subscriptions.messenger.store import Messenger
from shared.contracts.polls import UserCursor, decode_user_cursor, encode_user_cursor
from shared.postgres.pool import Database
from tests.fakes.messenger import Users, running_users

USERS = 2


class CrashError(Exception):
    """The process dies."""


class Process:
    """One of the processes that append events. It can die before or after the commit."""

    def __init__(self, database: Database) -> None:
        self._messenger = Messenger(database, self._add_deliveries)
        self._death = ""

    async def _add_deliveries(self, _: Any, events: Sequence[AppendedEvent]) -> None:
        assert events
        if self._death == "before the commit":
            raise CrashError

    async def append(self, events: Sequence[NewEvent], death: str) -> None:
        """Append events; if the process dies, the next one appends them again."""
        self._death = death
        try:
            await self._messenger.append(events)
        except CrashError:
            await self.append(events, "")
        if death == "after the commit":
            await self.append(events, "")


def new_event(user_id: int, number: int) -> NewEvent:
    """Return an event, or for an odd number a message with its event."""
    if number % 2:
        return message_event(UserMessage(user_id, user_id, str(number)), str(number))
    return NewEvent(user_id, f"event-{number}", "t", json.dumps({"text": str(number)}))


class Reader:
    """Reads the events of a user by cursor, a few at a time, while they are appended."""

    def __init__(self, users: Users, token: str, user_id: int) -> None:
        self._users = users
        self._token = token
        self._cursor = encode_user_cursor(UserCursor(user_id, 0))
        self.sequences: list[int] = []
        self.texts: list[str] = []

    async def read(self) -> bool:
        """Read the next events, and return whether there were any."""
        page = await self._users.read(self._token, cursor=self._cursor, limit=3)
        self._cursor = page.next_cursor
        self.sequences += [decode_user_cursor(event.cursor).sequence for event in page.events]
        self.texts += [json.loads(event.event)["text"] for event in page.events]
        return bool(page.events)


# One append: the users and the numbers of its events, and how the process dies.
APPEND = st.tuples(
    st.lists(
        st.tuples(st.integers(0, USERS - 1), st.integers(0, 15)),
        min_size=1,
        max_size=8,
        unique=True,
    ),
    st.sampled_from(("", "", "before the commit", "after the commit")),
)
# Each process appends one batch after the other, at the same time as the other processes.
PLAN = st.lists(st.lists(APPEND, min_size=1, max_size=5), min_size=1, max_size=4)


@settings(max_examples=15, deadline=None)
@given(plan=PLAN)
def test_u6_sequences_have_no_gaps_and_no_reader_misses_an_event(
    database_url: str, plan: list[list[tuple[list[tuple[int, int]], str]]]
) -> None:
    async def run() -> None:
        async with running_users(database_url) as users:
            ids = [await users.register(f"user{number}") for number in range(USERS)]
            tokens = [await users.sign_in(f"user{number}") for number in range(USERS)]
            readers = [Reader(users, *each) for each in zip(tokens, ids, strict=True)]

            async def work(appends: list[tuple[list[tuple[int, int]], str]]) -> None:
                process = Process(users.database)
                for events, death in appends:
                    await process.append([new_event(ids[u], n) for u, n in events], death)

            working = asyncio.gather(*map(work, plan))
            while not working.done():
                for reader in readers:
                    await reader.read()
            await working
            for number, reader in enumerate(readers):
                while await reader.read():
                    pass
                appended = {n for appends in plan for e, _ in appends for u, n in e if u == number}
                assert reader.sequences == list(range(1, len(appended) + 1))
                assert sorted(reader.texts) == sorted(map(str, appended))
            sent = {n for appends in plan for e, _ in appends for _, n in e if n % 2}
            rows = await users.database.fetch("SELECT text FROM subscriptions.messages")
            assert {row["text"] for row in rows} == set(map(str, sent))

    asyncio.run(run())


async def test_u6_one_batch_numbers_the_events_of_a_user_in_order(database_url: str) -> None:
    async with running_users(database_url) as users:
        id_ = await users.register("ann")
        numbers = [7, 2, 9, 4, 1, 8]
        results = await users.messenger.append([new_event(id_, number) for number in numbers])
        assert {result.outcome for result in results} == {Outcome.APPENDED}
        assert await users.texts(await users.sign_in("ann"), limit=100) == [*map(str, numbers)]
