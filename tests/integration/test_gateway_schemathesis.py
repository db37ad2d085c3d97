"""S10: no request causes a server error, whether the OpenAPI document permits it or not."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error

from services.gateway.routes import ABOUT, all_routes
from shared.http.openapi import document
from tests.fakes.gateway import base_url
from tests.fakes.system import fresh_database, system

API = schemathesis.openapi.from_dict(document(all_routes("https://example.com"), ABOUT))
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


# Without shrinking, which takes long: the first failing request says enough.
@API.parametrize()
@settings(
    max_examples=60,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
def test_s10_no_request_causes_a_server_error(case: Any, base: str) -> None:
    case.call_and_validate(base_url=base, checks=(not_a_server_error,))
