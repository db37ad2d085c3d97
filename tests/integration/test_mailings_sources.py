"""Unavailable sources and hosts that are not configured: the posting has the reason."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from services.mailings.expansion import sources
from tests.fakes.mailing import (
    Mailings,
    empty_mailings,
    posting,
    running_mailings,
    user,
    user_lists,
)
from tests.fakes.sandbox import Sandbox, running_sandbox
from tests.fakes.waiting import until

USERS = "http://auth/api/v1/users/?page_size=100"


@pytest.fixture
async def url(database_url: str) -> str:
    return await empty_mailings(database_url)


@pytest.fixture
async def setup(url: str) -> AsyncIterator[tuple[Mailings, Sandbox]]:
    async with running_sandbox(users=250) as sandbox:
        hosts = {
            "auth": f"{sandbox.url}auth",
            "fastapi": f"{sandbox.url}fastapi",
            "offline": "http://127.0.0.1:1",
            "nowhere.invalid": "",
            "localhost": "",
        }
        async with running_mailings(url, hosts) as mailings:
            yield mailings, sandbox


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
    setup: tuple[Mailings, Sandbox], case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "RESPONSE_TIMEOUT", 0.3)
    mailings, sandbox = setup
    behaviour, reason = TEMPORARY[case]
    await sandbox.configure("/api/apis/auth/settings", behaviour=behaviour, times=1)
    posting_id = await mailings.post(posting(receivers=USERS))
    await mailings.expansion.run_once(1)
    pending = await mailings.status(posting_id)

    assert pending.status == "accepted"
    assert f"receivers, page 1: {reason}" in (pending.reason or "")
    assert await mailings.expansion.run_once(1) == 0, "not at once"
    await mailings.make_due(posting_id)
    status = await mailings.expand(posting_id)
    assert (status.status, status.reason, status.receivers) == ("sending", None, 250)


async def test_an_error_on_the_second_page_keeps_the_first_page(
    setup: tuple[Mailings, Sandbox],
) -> None:
    mailings, sandbox = setup
    posting_id = await mailings.post(posting(receivers=USERS))
    fetch = mailings.expansion._sources.json  # noqa: SLF001

    async def second_page_fails(url: str) -> Any:
        if "page_number=2" in url and not hasattr(second_page_fails, "failed"):
            second_page_fails.failed = True  # type: ignore[attr-defined]
            await sandbox.configure(
                "/api/apis/auth/settings", behaviour={"kind": "fail", "status": 500}, times=1
            )
        return await fetch(url)

    mailings.expansion._sources.json = second_page_fails  # type: ignore[method-assign]  # noqa: SLF001
    await mailings.expansion.run_once(1)
    pending = await mailings.status(posting_id)
    assert (pending.status, pending.pages, pending.receivers) == ("expanding", 1, 100)
    assert "receivers, page 2: auth responded with 500" in (pending.reason or "")
    await mailings.make_due(posting_id)
    status = await mailings.expand(posting_id)
    assert (status.pages, status.receivers) == (3, 250)
    assert set(mailings.broker.ids(posting_id).values()) == {1}


@pytest.mark.parametrize("case", FINAL)
async def test_a_permanent_error_of_a_source_fails_the_posting_at_once(
    setup: tuple[Mailings, Sandbox], case: str
) -> None:
    mailings, sandbox = setup
    behaviour, reason = FINAL[case]
    await sandbox.configure("/api/apis/auth/settings", behaviour=behaviour)
    status = await mailings.expand(await mailings.post(posting(receivers=USERS)), slices=1)
    assert status.status == "failed"
    assert reason in (status.reason or "")


async def test_a_source_that_stays_unavailable_fails_the_posting_after_eight_failures(
    setup: tuple[Mailings, Sandbox],
) -> None:
    mailings, _ = setup
    posting_id = await mailings.post(posting(receivers="http://offline/users/"))
    for _ in range(8):
        await mailings.make_due(posting_id)
        await mailings.expansion.run_once(1)
    status = await mailings.status(posting_id)
    assert status.status == "failed"
    assert "failed 8 times: receivers, page 1: offline: connect" in (status.reason or "")
    assert mailings.broker.sent == []


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
    setup: tuple[Mailings, Sandbox], source: str, host: str
) -> None:
    mailings, _ = setup
    users = await mailings.expand(await mailings.post(posting(receivers=source)))
    movies = posting(
        receivers=USERS, template="email/new_movies.md", template_context={"movies": source}
    )
    data = await mailings.expand(await mailings.post(movies))
    assert users.status == data.status == "failed"
    assert f"{host} not in RINGBACK_SOURCES" in (users.reason or "")
    assert f"template_context.movies: {host} not in" in (data.reason or "")


async def test_a_source_without_a_port_allows_every_port(
    setup: tuple[Mailings, Sandbox],
) -> None:
    mailings, sandbox = setup
    url = str(sandbox.url.with_host("localhost") / "auth/api/v1/users/")
    status = await mailings.expand(await mailings.post(posting(receivers=url)))
    assert (status.status, status.receivers) == ("sending", 250)


async def test_e5_the_data_of_several_urls_becomes_one_list(
    setup: tuple[Mailings, Sandbox],
) -> None:
    mailings, sandbox = setup
    new = await sandbox.get("/fastapi/api/v1/movies/", new="True")
    other = (await sandbox.get("/fastapi/api/v1/movies/", new="False"))[0]
    urls = ["http://fastapi/api/v1/movies/?new=True", f"http://fastapi/api/v1/movies/{other['id']}"]
    body = posting(
        receivers=USERS, template="email/new_movies.md", template_context={"movies": urls}
    )
    await mailings.expand(await mailings.post(body))
    text = json.loads(mailings.broker.sent[0].body)["text"]
    assert all(movie["title"] in text for movie in [*new, other])


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (7, "must be a URL or a list of URLs"),
        ([{"url": "http://fastapi/"}], "must be a URL or a list of URLs"),
        (["http://fastapi/nothing/here/"] * 2001, "fastapi responded with 404"),
        ("ftp://fastapi/", "URL must begin with http"),
        ("http://fastapi/nothing/here/", "fastapi responded with 404"),
    ],
)
async def test_unavailable_data_fails_the_posting_with_the_name_of_the_variable(
    setup: tuple[Mailings, Sandbox], value: Any, reason: str
) -> None:
    mailings, _ = setup
    body = posting(template="email/new_movies.md", template_context={"movies": value})
    status = await mailings.expand(await mailings.post(body))
    assert status.status == "failed"
    assert f"template_context.movies: {reason}" in (status.reason or "")
    assert "http://fastapi" not in (status.reason or "")


async def test_a_dns_error_is_temporary(
    setup: tuple[Mailings, Sandbox],
) -> None:
    mailings, _ = setup
    posting_id = await mailings.post(posting(receivers="https://nowhere.invalid/users/"))
    await mailings.expansion.run_once(1)

    async def has_reason() -> bool:
        return "nowhere.invalid: dns" in ((await mailings.status(posting_id)).reason or "")

    await until(has_reason)


async def test_finding_c7_a_token_is_sent_to_its_source_and_to_no_other(url: str) -> None:
    async with user_lists() as auth, user_lists() as other:
        hosts = {"auth": auth.url, "other": other.url, "127.0.0.1": ""}
        tokens = {"auth": "s3cret-1", "other": "Token s3cret-2"}
        auth.responses["linked", 1] = lambda: {
            "results": [user(1)],
            "next": "http://other/lists/all/",
        }
        auth.responses["any", 1] = lambda: {
            "results": [user(1)],
            "next": f"{other.url}/lists/all/",
        }
        other.users["all"] = [user(2)]
        auth.responses["moved", 1] = lambda: web.Response(
            status=307, headers={"Location": f"{other.url}/lists/all/"}
        )
        async with running_mailings(url, hosts, source_tokens=tokens) as mailings:
            lists = ("linked", "any", "moved")
            statuses = [
                await mailings.expand(
                    await mailings.post(posting(receivers=f"http://auth/lists/{name}/"))
                )
                for name in lists
            ]

    assert auth.authorizations == ["Bearer s3cret-1"] * 3
    assert other.authorizations == ["Token s3cret-2", None]
    assert [status.receivers for status in statuses] == [2, 2, 0]
    assert "auth responded with 307" in (statuses[2].reason or "")


async def test_finding_c7_a_refused_token_fails_the_posting_and_is_never_logged(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    async with user_lists() as auth:
        auth.responses["all", 1] = lambda: web.Response(status=401)
        auth.responses["broken", 1] = lambda: web.Response(text="not JSON")
        async with running_mailings(
            url, {"auth": auth.url}, source_tokens={"auth": "s3cret"}
        ) as mailings:
            refused = await mailings.expand(await mailings.post(posting()), slices=1)
            broken_id = await mailings.post(posting(receivers="http://auth/lists/broken/"))
            await mailings.expansion.run_once(1)
            broken = await mailings.status(broken_id)

    assert "auth responded with 401" in (refused.reason or "")
    assert "invalid JSON" in (broken.reason or "")
    assert "s3cret" not in f"{refused} {broken} {caplog.text}"


def movies(count: int, **fields: Any) -> list[dict[str, Any]]:
    return [{"title": f"Movie {number}", "genres": ["drama"], **fields} for number in range(count)]


@pytest.mark.parametrize("form", ["urls", "pages"])
async def test_finding_c17_a_posting_may_have_hundreds_of_movies(url: str, form: str) -> None:
    async with user_lists() as server:
        server.users["all"] = [user(1)]
        server.responses["movie", 1] = lambda: movies(1)[0]
        server.responses["movies", 1] = lambda: {
            "results": movies(150),
            "next": "/lists/movies/?page_number=2",
        }
        server.responses["movies", 2] = lambda: {"results": movies(100), "next": None}
        source = {"urls": ["http://auth/lists/movie/"] * 250, "pages": "http://auth/lists/movies/"}
        body = posting(template="email/new_movies.md", template_context={"movies": source[form]})
        async with running_mailings(url, {"auth": server.url}) as mailings:
            posting_id = await mailings.post(body)
            status = await mailings.expand(posting_id)
            [message] = mailings.broker.bodies(posting_id)

    assert (status.status, status.reason) == ("sending", None)
    assert message["subject"] == "250 new movies on Ringback"
    assert message["text"].count("Movie ") == 50
    assert "… and 200 more." in message["text"]


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (
            {"results": [], "next": "/lists/movies/?page_number=1"},
            "the data needs more than 2000 requests",
        ),
        (
            {"results": movies(100, text="x" * 500), "next": "/lists/movies/?page_number=1"},
            "the data is larger than 1048576 characters",
        ),
    ],
)
async def test_finding_c17_endless_data_fails_the_posting(
    url: str, response: dict[str, Any], reason: str
) -> None:
    async with user_lists() as server:
        server.responses["movies", 1] = lambda: response
        context = {"movies": "http://auth/lists/movies/"}
        body = posting(template="email/new_movies.md", template_context=context)
        async with running_mailings(url, {"auth": server.url}) as mailings:
            status = await mailings.expand(await mailings.post(body))

    assert status.reason == f"template_context.movies: {reason}"


async def test_finding_c17_a_failed_request_for_data_ends_the_others(url: str) -> None:
    arrived, ended = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        arrived.set()
        await ended.wait()

    async def fail() -> web.Response:
        await arrived.wait()
        return web.Response(status=404)

    async with user_lists() as server:
        server.responses["slow", 1] = hang
        server.responses["broken", 1] = fail
        urls = [f"http://auth/lists/{name}/" for name in ("slow", "broken")]
        body = posting(template="email/new_movies.md", template_context={"movies": urls})
        async with running_mailings(url, {"auth": server.url}) as mailings:
            status = await mailings.expand(await mailings.post(body))
            await asyncio.sleep(0)  # a cancelled task ends in the next step
            fetching = [str(task) for task in asyncio.all_tasks() if "_fetch" in str(task)]
            ended.set()
    assert status.status == "failed"
    assert not fetching


async def test_finding_c17_a_list_that_is_too_long_fails_before_anything_is_sent(url: str) -> None:
    async with user_lists() as server:
        server.responses["all", 1] = lambda: {
            "results": [user(number) for number in range(10)],
            "count": 451,
        }
        async with running_mailings(url, {"auth": server.url}, max_receivers=450) as mailings:
            status = await mailings.expand(await mailings.post(posting()))

    assert status.status == "failed"
    assert "more than 450 receivers" in (status.reason or "")
    assert mailings.broker.sent == []
