"""Unavailable sources and hosts that are not configured: the posting has the reason."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.mailings.expansion import sources
from tests.fakes.mailing import Mailings, empty_mailings, posting, running_mailings
from tests.fakes.sandbox import Sandbox, running_sandbox
from tests.fakes.waiting import until

USERS = "http://auth/api/v1/users/?page_size=100"


@pytest.fixture
async def url(database_url: str) -> str:
    return await empty_mailings(database_url)


@pytest.fixture
async def around(url: str) -> AsyncIterator[tuple[Mailings, Sandbox]]:
    async with running_sandbox(users=250) as outside:
        hosts = {
            "auth": f"{outside.url}auth",
            "fastapi": f"{outside.url}fastapi",
            "away": "http://127.0.0.1:1",
            "nowhere.invalid": "",
            "localhost": "",
        }
        async with running_mailings(url, hosts) as it:
            yield it, outside


TEMPORARY: dict[str, tuple[dict[str, Any], str]] = {
    "no response": ({"kind": "hang"}, "auth: timeout: no response from"),
    "a slow response": ({"kind": "delay", "seconds": 5}, "auth: timeout: no response from"),
    "a dripping response": (
        {"kind": "drip", "interval": 0.1, "bytes": 100},
        "auth: timeout: no response from",
    ),
    "503": ({"kind": "fail", "status": 503}, "auth responded with 503"),
    "429": ({"kind": "fail", "status": 429}, "auth responded with 429"),
    "truncated JSON": ({"kind": "respond", "body": '[{"id": '}, "auth: invalid JSON"),
    "NaN": ({"kind": "respond", "body": '[{"id": NaN}]'}, "auth: invalid JSON"),
    "a thousand levels": ({"kind": "respond", "body": "[" * 1000}, "auth: invalid JSON"),
    "a truncated response": ({"kind": "reset"}, "auth: "),
    "a closed connection": ({"kind": "close"}, "auth: disconnected"),
}
FINAL: dict[str, tuple[dict[str, Any], str]] = {
    "404": ({"kind": "fail", "status": 404}, "auth responded with 404"),
    "a redirect": (
        {"kind": "redirect", "location": "http://127.0.0.1:1/"},
        "auth responded with 307",
    ),
    "a huge page": ({"kind": "huge_body", "bytes": 100_000_000}, "has more than 8388608 bytes"),
}


@pytest.mark.parametrize("case", TEMPORARY)
async def test_an_unavailable_source_is_retried_and_the_posting_has_the_reason(
    around: tuple[Mailings, Sandbox], case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "RESPONSE_TIMEOUT", 0.3)
    it, outside = around
    behaviour, reason = TEMPORARY[case]
    await outside.configure("/api/apis/auth/settings", behaviour=behaviour, times=1)
    id_ = await it.post(posting(receivers=USERS))
    await it.expansion.run_once(1)
    meanwhile = await it.status(id_)

    assert meanwhile.status == "accepted"
    assert f"receivers, page 1: {reason}" in (meanwhile.reason or "")
    assert await it.expansion.run_once(1) == 0, "not at once"
    await it.make_due(id_)
    status = await it.expand(id_)
    assert (status.status, status.reason, status.receivers) == ("sending", None, 250)


async def test_an_error_on_the_second_page_keeps_the_first_page(
    around: tuple[Mailings, Sandbox],
) -> None:
    it, outside = around
    id_ = await it.post(posting(receivers=USERS))
    fetch = it.expansion._sources.json  # noqa: SLF001

    async def second_page_fails(url: str) -> Any:
        if "page_number=2" in url and not hasattr(second_page_fails, "failed"):
            second_page_fails.failed = True  # type: ignore[attr-defined]
            await outside.configure(
                "/api/apis/auth/settings", behaviour={"kind": "fail", "status": 500}, times=1
            )
        return await fetch(url)

    it.expansion._sources.json = second_page_fails  # type: ignore[method-assign]  # noqa: SLF001
    await it.expansion.run_once(1)
    meanwhile = await it.status(id_)
    assert (meanwhile.status, meanwhile.pages, meanwhile.receivers) == ("expanding", 1, 100)
    assert "receivers, page 2: auth responded with 500" in (meanwhile.reason or "")
    await it.make_due(id_)
    status = await it.expand(id_)
    assert (status.pages, status.receivers) == (3, 250)
    assert set(it.broker.ids(id_).values()) == {1}


@pytest.mark.parametrize("case", FINAL)
async def test_a_permanent_error_of_a_source_fails_the_posting_at_once(
    around: tuple[Mailings, Sandbox], case: str
) -> None:
    it, outside = around
    behaviour, reason = FINAL[case]
    await outside.configure("/api/apis/auth/settings", behaviour=behaviour)
    status = await it.expand(await it.post(posting(receivers=USERS)), slices=1)
    assert status.status == "failed"
    assert reason in (status.reason or "")


async def test_a_source_that_stays_unavailable_fails_the_posting_after_eight_failures(
    around: tuple[Mailings, Sandbox],
) -> None:
    it, _ = around
    id_ = await it.post(posting(receivers="http://away/users/"))
    for _ in range(8):
        await it.make_due(id_)
        await it.expansion.run_once(1)
    status = await it.status(id_)
    assert status.status == "failed"
    assert "failed 8 times: receivers, page 1: away: connect" in (status.reason or "")
    assert it.broker.sent == []


@pytest.mark.parametrize(
    ("source", "host"),
    [
        ("http://evil.example.com/users/", "host evil.example.com is"),
        ("http://auth:8080/users/", "host auth:8080 is"),
        ("http://127.0.0.1/users/", "host 127.0.0.1 is"),
        ("http://auth.evil.example.com/", "host auth.evil.example.com is"),
        ("http://[::1]:5432/", "host [::1]:5432 is"),
    ],
)
async def test_a_host_that_is_not_configured_is_rejected(
    around: tuple[Mailings, Sandbox], source: str, host: str
) -> None:
    it, _ = around
    users = await it.expand(await it.post(posting(receivers=source)))
    movies = posting(
        receivers=USERS, template="email/new_movies.md", template_context={"movies": source}
    )
    data = await it.expand(await it.post(movies))
    assert users.status == data.status == "failed"
    assert f"{host} not in RINGBACK_SOURCES" in (users.reason or "")
    assert f"template_context.movies: {host} not in" in (data.reason or "")


async def test_a_source_without_a_port_allows_every_port(
    around: tuple[Mailings, Sandbox],
) -> None:
    it, outside = around
    url = str(outside.url.with_host("localhost") / "auth/api/v1/users/")
    status = await it.expand(await it.post(posting(receivers=url)))
    assert (status.status, status.receivers) == ("sending", 250)


async def test_e5_the_data_of_several_urls_becomes_one_list(
    around: tuple[Mailings, Sandbox],
) -> None:
    it, outside = around
    new = await outside.get("/fastapi/api/v1/movies/", new="True")
    other = (await outside.get("/fastapi/api/v1/movies/", new="False"))[0]
    urls = ["http://fastapi/api/v1/movies/?new=True", f"http://fastapi/api/v1/movies/{other['id']}"]
    body = posting(
        receivers=USERS, template="email/new_movies.md", template_context={"movies": urls}
    )
    await it.expand(await it.post(body))
    text = json.loads(it.broker.sent[0].body)["text"]
    assert all(movie["title"] in text for movie in [*new, other])


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (7, "must be a URL or a list of URLs"),
        ([{"url": "http://fastapi/"}], "must be a URL or a list of URLs"),
        (["http://fastapi/api/v1/movies/?new=True"] * 101, "more than 100 URLs"),
        ("ftp://fastapi/", "URL must begin with http"),
        ("http://fastapi/nothing/here/", "fastapi responded with 404"),
    ],
)
async def test_unavailable_data_fails_the_posting_with_the_name_of_the_variable(
    around: tuple[Mailings, Sandbox], value: Any, reason: str
) -> None:
    it, _ = around
    body = posting(template="email/new_movies.md", template_context={"movies": value})
    status = await it.expand(await it.post(body))
    assert status.status == "failed"
    assert f"template_context.movies: {reason}" in (status.reason or "")
    assert "http://fastapi" not in (status.reason or "")


async def test_a_dns_error_is_temporary(
    around: tuple[Mailings, Sandbox],
) -> None:
    it, _ = around
    id_ = await it.post(posting(receivers="https://nowhere.invalid/users/"))
    await it.expansion.run_once(1)

    async def has_reason() -> bool:
        return "nowhere.invalid: dns" in ((await it.status(id_)).reason or "")

    await until(has_reason)
