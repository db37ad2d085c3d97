"""M15: a user of the broker for each service, with the permissions of the docs.

All tests of this directory run the services with these users. At the end, none may have been
refused anything.
"""

import asyncio
import re

import aiormq
import pytest

from shared.registry import SERVICES
from shared.topology import CALLBACKS, EXCHANGES, POSTINGS, WORK_QUEUES, dead_queue
from tests.fakes.broker_users import permissions
from tests.fakes.polling import open_polls, person
from tests.fakes.system import System
from tests.fakes.waiting import until


def test_m15_the_page_has_a_user_for_each_service_and_the_names_of_all_exchanges() -> None:
    found = permissions()
    assert found.keys() == SERVICES.keys() - {"sandbox"}
    for regexes in found.values():
        assert all(re.search(regexes["configure"], exchange.name) for exchange in EXCHANGES)


def test_m15_only_the_journal_may_read_queues_that_a_service_does_not_declare() -> None:
    readers = {
        queue.name: {
            service
            for service, regexes in permissions().items()
            if re.search(regexes["read"], queue.name)
        }
        for queue in WORK_QUEUES
    }
    assert readers[CALLBACKS] == {
        *("callback", "scheduler", "ingestion", "subscriptions", "journal"),
    }
    assert readers[POSTINGS] == {"ingestion", "mailings", "journal"}
    assert readers["messages.email"] == {"mailings", "delivery", "journal"}


def test_m15_each_service_works_with_its_own_user(services: System) -> None:
    for service in services.values():
        assert "refused for user" not in service.output


async def test_m15_a_poll_is_woken_between_services_with_their_own_users(services: System) -> None:
    """No other test of this directory uses the exchange of wakes."""
    async with services.calling() as call:
        await until(lambda: services["gateway"].logged("user events is ready"))
        ann, bob = await person(call), await person(call)
        poll = asyncio.create_task(bob.poll(timeout=60))
        await open_polls(services["gateway"], 1)
        await ann.send(bob, "hi")
        async with asyncio.timeout(30):
            response = await poll
    assert response.json["event"]["text"] == "hi"


@pytest.mark.parametrize("queue", [CALLBACKS, dead_queue(CALLBACKS), POSTINGS])
@pytest.mark.usefixtures("services")
async def test_m15_the_gateway_cannot_read_what_others_consume(
    own_amqp_urls: dict[str, str], shared_amqp_url: str, queue: str
) -> None:
    if own_amqp_urls["gateway"] == shared_amqp_url:
        pytest.skip("RINGBACK_AMQP_URL has one user")
    connection = await aiormq.connect(own_amqp_urls["gateway"])
    try:
        channel = await connection.channel()
        with pytest.raises(aiormq.exceptions.ChannelAccessRefused):
            await channel.basic_get(queue)
    finally:
        await connection.close()
