"""S10: whatever is sent, permitted by the OpenAPI document or not, it is no server error."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error

from services.gateway.operations import ABOUT, operations
from shared.http.openapi import document
from tests.fakes.gateway import base_url
from tests.fakes.system import fresh_database, system

API = schemathesis.openapi.from_dict(document(operations("https://example.com"), ABOUT))
SERVICES = ("scheduler", "callback", "mailings")


@pytest.fixture(scope="module")
def base(
    shared_amqp_url: str, database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    with (
        fresh_database(database_url) as url,
        system(tmp_path_factory.mktemp("system"), shared_amqp_url, url, *SERVICES) as services,
    ):
        asyncio.run(services.ready())
        yield asyncio.run(base_url(services["gateway"]))


# Without shrinking: the first such request is telling enough, and the time is bounded.
@API.parametrize()
@settings(
    max_examples=60,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
def test_s10_no_request_is_a_server_error(case: Any, base: str) -> None:
    case.call_and_validate(base_url=base, checks=(not_a_server_error,))
