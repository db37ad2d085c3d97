"""Sources in trouble, and hosts that nobody configured: the posting says so, the rest goes on."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.mailings.expansion import sources
from tests.fakes.mailing import Mailings, emptied, mailings, posting
from tests.fakes.sandbox import Sandbox, sandbox
from tests.fakes.waiting import until

USERS = "http://auth/api/v1/users/?page_size=100"


@pytest.fixture
async def url(database_url: str) -> str:
    return await emptied(database_url)


@pytest.fixture
async def around(url: str) -> AsyncIterator[tuple[Mailings, Sandbox]]:
    async with sandbox(users=250) as outside:
        places = {
            "auth": f"{outside.url}auth",
            "fastapi": f"{outside.url}fastapi",
            "away": "http://127.0.0.1:1",
            "nowhere.invalid": "",
            "localhost": "",
        }
        async with mailings(url, places) as it:
            yield it, outside


PASSING: dict[str, tuple[dict[str, Any], str]] = {
    "a page that never comes": ({"kind": "hang"}, "auth: timeout: no answer from"),
    "a page that is slow": ({"kind": "delay", "seconds": 5}, "auth: timeout: no answer from"),
    "a page that drips": (
        {"kind": "drip", "interval": 0.1, "bytes": 100},
        "auth: timeout: no answer from",
    ),
    "503": ({"kind": "fail", "status": 503}, "auth answered 503"),
    "429": ({"kind": "fail", "status": 429}, "auth answered 429"),
    "broken JSON": ({"kind": "respond", "body": '[{"id": '}, "auth: broken JSON"),
    "NaN": ({"kind": "respond", "body": '[{"id": NaN}]'}, "auth: broken JSON"),
    "a thousand levels": ({"kind": "respond", "body": "[" * 1000}, "auth: broken JSON"),
    "a page that breaks off": ({"kind": "reset"}, "auth: "),
    "a closed connection": ({"kind": "close"}, "auth: disconnected"),
}
FINAL: dict[str, tuple[dict[str, Any], str]] = {
    "404": ({"kind": "fail", "status": 404}, "auth answered 404"),
    "a redirect": ({"kind": "redirect", "location": "http://127.0.0.1:1/"}, "auth answered 307"),
    "a huge page": ({"kind": "huge_body", "bytes": 100_000_000}, "has more than 8388608 bytes"),
}


@pytest.mark.parametrize("trouble", PASSING)
async def test_a_source_in_trouble_is_asked_again_and_its_posting_says_why(
    around: tuple[Mailings, Sandbox], trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "PATIENCE", 0.3)
    it, outside = around
    behaviour, reason = PASSING[trouble]
    await outside.configure("/api/apis/auth/settings", behaviour=behaviour, times=1)
    id_ = await it.post(posting(receivers=USERS))
    await it.expansion.run_once(1)
    meanwhile = await it.status(id_)

    assert meanwhile.status == "accepted"
    assert f"receivers, page 1: {reason}" in (meanwhile.reason or "")
    assert await it.expansion.run_once(1) == 0, "not at once"
    await it.due(id_)
    status = await it.expand(id_)
    assert (status.status, status.reason, status.receivers) == ("sending", None, 250)


async def test_trouble_in_the_middle_costs_nothing_of_what_is_done(
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
    assert "receivers, page 2: auth answered 500" in (meanwhile.reason or "")
    await it.due(id_)
    status = await it.expand(id_)
    assert (status.pages, status.receivers) == (3, 250)
    assert set(it.queues.ids(id_).values()) == {1}


@pytest.mark.parametrize("trouble", FINAL)
async def test_a_source_that_refuses_fails_its_posting_at_once(
    around: tuple[Mailings, Sandbox], trouble: str
) -> None:
    it, outside = around
    behaviour, reason = FINAL[trouble]
    await outside.configure("/api/apis/auth/settings", behaviour=behaviour)
    status = await it.expand(await it.post(posting(receivers=USERS)), turns=1)
    assert status.status == "failed"
    assert reason in (status.reason or "")


async def test_a_source_that_stays_in_trouble_fails_its_posting_after_eight_tries(
    around: tuple[Mailings, Sandbox],
) -> None:
    it, _ = around
    id_ = await it.post(posting(receivers="http://away/users/"))
    for _ in range(8):
        await it.due(id_)
        await it.expansion.run_once(1)
    status = await it.status(id_)
    assert status.status == "failed"
    assert "gave up after 8 tries: receivers, page 1: away: connect" in (status.reason or "")
    assert it.queues.sent == []


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("http://evil.example.com/users/", "host evil.example.com is"),
        ("http://auth:8080/users/", "host auth:8080 is"),
        ("http://127.0.0.1/users/", "host 127.0.0.1 is"),
        ("http://auth.evil.example.com/", "host auth.evil.example.com is"),
        ("http://[::1]:5432/", "host [::1]:5432 is"),
    ],
)
async def test_hosts_that_are_not_configured_are_refused(
    around: tuple[Mailings, Sandbox], source: str, named: str
) -> None:
    it, _ = around
    users = await it.expand(await it.post(posting(receivers=source)))
    movies = posting(
        receivers=USERS, template="email/new_movies.md", template_context={"movies": source}
    )
    data = await it.expand(await it.post(movies))
    assert users.status == data.status == "failed"
    assert f"{named} not among RINGBACK_SOURCES" in (users.reason or "")
    assert f"template_context.movies: {named} not among" in (data.reason or "")


async def test_a_host_without_a_port_may_be_asked_on_any(
    around: tuple[Mailings, Sandbox],
) -> None:
    it, outside = around
    url = str(outside.url.with_host("localhost") / "auth/api/v1/users/")
    status = await it.expand(await it.post(posting(receivers=url)))
    assert (status.status, status.receivers) == ("sending", 250)


async def test_e5_lists_and_single_things_at_several_urls_are_one_list(
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
    text = json.loads(it.queues.sent[0].body)["text"]
    assert all(movie["title"] in text for movie in [*new, other])


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (7, "must be a URL or a list of URLs"),
        ([{"url": "http://fastapi/"}], "must be a URL or a list of URLs"),
        (["http://fastapi/api/v1/movies/?new=True"] * 101, "more than 100 URLs"),
        ("ftp://fastapi/", "URL must begin with http"),
        ("http://fastapi/nothing/here/", "fastapi answered 404"),
    ],
)
async def test_data_that_can_t_be_had_fails_the_posting_by_the_variable_s_name(
    around: tuple[Mailings, Sandbox], value: Any, reason: str
) -> None:
    it, _ = around
    body = posting(template="email/new_movies.md", template_context={"movies": value})
    status = await it.expand(await it.post(body))
    assert status.status == "failed"
    assert f"template_context.movies: {reason}" in (status.reason or "")
    assert "http://fastapi" not in (status.reason or "")


async def test_a_name_that_does_not_resolve_is_trouble_that_may_pass(
    around: tuple[Mailings, Sandbox],
) -> None:
    it, _ = around
    id_ = await it.post(posting(receivers="https://nowhere.invalid/users/"))
    await it.expansion.run_once(1)

    async def says_so() -> bool:
        return "nowhere.invalid: dns" in ((await it.status(id_)).reason or "")

    await until(says_so)
