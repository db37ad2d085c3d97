"""S10: the API documents and Swagger UI, which work without internet access."""

import re
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.fakes.gateway import Caller, base_url, calling, gateway
from tests.fakes.service import Service

EXAMPLE_URL = "http://127.0.0.1:8090/hooks/mine"


@pytest.fixture(scope="module")
def gateway_service(
    shared_amqp_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    settings = {"RINGBACK_GATEWAY_EXAMPLE_URL": EXAMPLE_URL}
    with gateway(tmp_path_factory.mktemp("gateway"), shared_amqp_url, settings) as service:
        yield service


@pytest.fixture
async def call(gateway_service: Service) -> AsyncIterator[Caller]:
    async with calling(await base_url(gateway_service)) as caller:
        yield caller


async def test_s10_m9_both_documents_are_served(call: Caller) -> None:
    openapi = (await call("GET", "/openapi.json")).json
    assert {"/v1/callbacks", "/v1/clients", "/v1/mailings"} <= openapi["paths"].keys()
    assert openapi["openapi"].startswith("3.1")
    assert EXAMPLE_URL in str(openapi["paths"]["/v1/callbacks"]["post"]["requestBody"])
    assert (await call("GET", "/asyncapi.json")).json["asyncapi"] == "3.0.0"


async def test_s10_m9_swagger_ui_loads_nothing_from_other_servers(call: Caller) -> None:
    redirect = await call("GET", "/docs")
    assert (redirect.status, redirect.headers["Location"]) == (301, "/docs/")
    page = await call("GET", "/docs/")
    assert page.headers["Content-Type"].startswith("text/html")
    assert "'self'" in page.headers["Content-Security-Policy"]
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert {"swagger-ui.css", "swagger-ui-bundle.js", "docs.js"} <= set(loaded)
    for name in loaded:
        assert "//" not in name
        asset = await call("GET", name if name.startswith("/") else f"/docs/{name}")
        assert asset.status == 200, name
        # No stylesheet loads a font or picture from another server.
        if name.endswith(".css"):
            assert not re.search(r"url\(['\"]?(?!['\"]?data:)", asset.text)
            assert "@import" not in asset.text
    assert '"/openapi.json"' in (await call("GET", "/docs/docs.js")).text


@pytest.mark.parametrize(
    "name", ["nothing.js", "..%2fapp.py", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "swagger-editor.css"]
)
async def test_no_other_file_is_served(call: Caller, name: str) -> None:
    (await call("GET", f"/docs/{name}")).problem(404)
