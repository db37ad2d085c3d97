"""M11: one address cannot keep all other users from signing in."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest
from aiohttp.test_utils import make_mocked_request

from services.console.sign_in import pages
from services.console.sign_in.errors import Reason, SignInError
from services.console.sign_in.pages import RoleClaim, SignIn


def visit(forwarded: str) -> Any:
    request = make_mocked_request("GET", "/", headers={"X-Forwarded-For": forwarded})
    return SimpleNamespace(
        request=request,
        query={"code": "made-up"},
        site=SimpleNamespace(origin="https://console.example.com"),
    )


async def test_a16_behind_a_proxy_each_address_has_its_own_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pages, "MAX_SIGN_INS", 2)
    refused = SignInError(Reason.CODE, "the provider refused the code")
    provider = Mock(claims=AsyncMock(side_effect=refused))
    sign_in = SignIn(provider, Mock(), RoleClaim("roles", {}), address_header="X-Forwarded-For")
    reasons = []
    for address in ("198.51.100.7",) * 3 + ("1.1.1.1, 198.51.100.7", "203.0.113.9"):
        with pytest.raises(SignInError) as raised:
            await sign_in._finish(visit(address), Mock())  # noqa: SLF001 - without a browser
        reasons.append(raised.value.reason)
    assert reasons == [Reason.CODE, Reason.CODE, Reason.TOO_MANY, Reason.TOO_MANY, Reason.CODE]
