"""M10: mailings are managed in the console, with their statistics and messages."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.fakes.campaigns import soon
from tests.fakes.sending_pages import HOSTILE, Desk, is_harmless, text_of
from tests.fakes.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


def form(**fields: str) -> dict[str, str]:
    return {"text": "Hello {{ user.tag|default('you', true) }}", "end_at": soon(3600), **fields}


async def created(pages: Desk, client: str, **fields: str) -> str:
    """Create a draft with the form, and return the path of its page."""
    shown = await pages.browser.post(
        f"/mailings/new?client={client}", form(do="draft", **fields), follow=False
    )
    assert shown.status == 303, shown.text
    assert shown.location.query["client"] == client
    return shown.location.path


async def mailing(pages: Desk, client: str, path: str) -> Any:
    """Return a mailing as its client sees it over HTTP."""
    return (await pages.call.as_client(client)("GET", f"/v1{path}")).json


async def test_m10_a_mailing_is_created_edited_started_paused_resumed_and_cancelled(
    pages: Desk, client: str
) -> None:
    empty = await pages.browser.get(f"/mailings?client={client}")
    assert "No mailings yet" in text_of(empty)
    api = pages.call.as_client(client)
    await api("POST", "/v1/clients", {"phone": "79160000001", "timezone": "UTC", "tag": "vip"})
    path = await created(
        pages,
        client,
        tags="vip\r\nother one",
        operator_codes="916, 926",
        opens="00:00",
        closes="00:01",
        rate_per_minute="600",
        template_context='{"a": 1}',
    )
    stored = await mailing(pages, client, path)
    assert stored["status"] == "draft"
    assert stored["filter"] == {"operator_codes": ["916", "926"], "tags": ["vip", "other one"]}
    assert stored["local_hours"] == {"from": "00:00", "to": "00:01"}
    assert (stored["rate_per_minute"], stored["template_context"]) == (600, {"a": 1})

    shown = await pages.browser.get(f"{path}?client={client}")
    assert "1 client match" in text_of(shown)
    assert "Hello vip" in text_of(shown)
    etag = stored["etag"]
    sent = form(text="Bye", tags="vip", etag=etag, do="save")
    changed = await pages.browser.post(f"{path}/edit?client={client}", sent)
    assert "The mailing is changed." in text_of(changed)
    stored = await mailing(pages, client, path)
    assert (stored["text"], stored["local_hours"]) == ("Bye", None)
    tested = await pages.browser.post(f"{path}/test?client={client}", {"phone": "79160000001"})
    assert "A test is sent to 79160000001." in text_of(tested)
    stale = await pages.browser.post(f"{path}/start?client={client}", {"etag": etag})
    assert stale.status == 412

    for action, status in (
        ("start", "running"),
        ("pause", "paused"),
        ("resume", "running"),
        ("cancel", "cancelled"),
    ):
        if action == "start":
            hours = await api("PATCH", f"/v1{path}", {"local_hours": closed_hours()})
            assert hours.status == 200
        shown = await pages.browser.post(f"{path}/{action}?client={client}", follow=False)
        assert shown.status == 303, shown.text
        assert (await mailing(pages, client, path))["status"] == status
    assert (await pages.browser.post(f"{path}/resume?client={client}")).status == 409
    deleted = await pages.browser.post(f"{path}/delete?client={client}")
    assert "The mailing is deleted." in text_of(deleted)
    assert (await pages.browser.get(f"{path}?client={client}")).status == 404
    # What was refused is not recorded.
    done = ("create", "change", "test", "start", "pause", "resume", "cancel", "delete")
    assert await pages.actions(client) == [f"mailing.{action}" for action in done]


async def test_m10_statistics_and_messages_are_shown_and_downloaded(
    pages: Desk, client: str
) -> None:
    api = pages.call.as_client(client)
    for number in range(3):
        fields = {"phone": f"7916000000{number}", "timezone": "UTC"}
        await api("POST", "/v1/clients", fields)
    path = await created(pages, client, text="{{ user.tag }}")  # no client has a tag
    await pages.browser.post(f"{path}/start?client={client}")

    async def all_skipped() -> bool:
        counts = (await api("GET", f"/v1{path}/stats")).json["by_status"]
        return bool(counts["skipped"] == 3)

    await until(all_skipped)
    shown = await pages.browser.get(f"{path}?client={client}")
    assert "3 of 3 are done, 100 %" in text_of(shown)
    for chart in ("Messages by hour", "Messages by operator code", "Messages by reason"):
        assert chart in text_of(shown)
    assert "not rendered" in text_of(shown)
    live = f"{pages.browser.origin}/live{path}?client={client}"
    async with asyncio.timeout(60), pages.browser.http.get(live) as stream:
        assert stream.content_type == "text/event-stream"
        lines = [line.decode() async for line in _first_event(stream)]
    assert any("3 of 3 are done, 100 %" in line for line in lines), lines
    found = await pages.browser.get(f"{path}/messages?client={client}&status=skipped")
    assert len(re.findall(r'<tr>\s*<th scope="row">', found.text)) == 3
    none = await pages.browser.get(f"{path}/messages?client={client}&status=sent")
    assert "No messages" in text_of(none)
    csv = await pages.browser.get(f"{path}/messages.csv?client={client}")
    assert csv.headers["Content-Type"].startswith("text/csv")
    assert len(csv.text.splitlines()) == 4
    totals = await pages.browser.get(f"/mailings?client={client}")
    assert "Messages 3" in text_of(totals)


async def _first_event(stream: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield the lines of the first event with data."""
    seen = False
    async for line in stream.content:
        if line.startswith(b"data:"):
            seen = True
            yield line
        elif seen:
            return


async def test_m10_a_preview_counts_the_audience_and_saves_nothing(
    pages: Desk, client: str
) -> None:
    api = pages.call.as_client(client)
    await api("POST", "/v1/clients", {"phone": "79160000001", "timezone": "UTC", "tag": "vip"})
    sent = form(do="preview", phone="79160000001")
    shown = await pages.browser.post(f"/mailings/new?client={client}", sent)
    assert "Hello vip" in text_of(shown)
    assert "9 characters in GSM-7, 1 segment" in text_of(shown)
    assert "The filter matches 1 client" in text_of(shown)
    unknown = form(do="preview", phone="79160000002")
    shown = await pages.browser.post(f"/mailings/new?client={client}", unknown)
    assert "No preview" in text_of(shown)
    assert (await api("GET", "/v1/mailings")).json["items"] == []


async def test_m10_wrong_fields_are_named_and_what_was_entered_stays(
    pages: Desk, client: str
) -> None:
    wrong = {"end_at": "never", "rate_per_minute": "x", "opens": "09:00", "text": "kept"}
    shown = await pages.browser.post(f"/mailings/new?client={client}", form(**wrong))
    assert shown.status == 422
    for name in ("end_at", "rate_per_minute", "closes"):
        assert f'href="#field-{name}"' in shown.text
    assert ">kept</textarea>" in shown.text
    shown = await pages.browser.post(f"/mailings/new?client={client}", form(text="{% bad"))
    assert shown.status == 422
    assert 'href="#field-text"' in shown.text


async def test_m10_a_form_that_is_sent_twice_creates_one_mailing(pages: Desk, client: str) -> None:
    page = await pages.browser.get(f"/mailings/new?client={client}")
    key = re.search(r'name="key" value="([^"]+)"', page.text)
    assert key
    sent = form(do="draft", key=key[1])
    first = await pages.browser.post(f"/mailings/new?client={client}", sent, follow=False)
    second = await pages.browser.post(f"/mailings/new?client={client}", sent, follow=False)
    assert first.location == second.location


async def test_m10_a_running_mailing_changes_its_end_and_rate_only(
    pages: Desk, client: str
) -> None:
    path = await created(pages, client)
    api = pages.call.as_client(client)
    await api("PATCH", f"/v1{path}", {"local_hours": closed_hours()})
    await api("POST", "/v1/clients", {"phone": "79160000001", "timezone": "UTC"})
    await pages.browser.post(f"{path}/start?client={client}")
    shown = await pages.browser.get(f"{path}/edit?client={client}")
    assert 'name="text"' not in shown.text
    sent = {"end_at": soon(7200), "rate_per_minute": "5"}
    shown = await pages.browser.post(f"{path}/edit?client={client}", sent, follow=False)
    assert shown.status == 303, shown.text
    stored = await mailing(pages, client, path)
    assert (stored["rate_per_minute"], stored["status"]) == (5, "running")
    await pages.browser.post(f"{path}/cancel?client={client}")


async def test_n8_hostile_texts_and_tags_stay_text(pages: Desk, client: str) -> None:
    api = pages.call.as_client(client)
    fields = {"phone": "79160000001", "timezone": "UTC", "tag": HOSTILE}
    assert (await api("POST", "/v1/clients", fields)).status == 201
    body = {
        "text": "<script>alert(1)</script>{{ user.tag }}",
        "filter": {"tags": [HOSTILE]},
        "end_at": soon(3600),
        "draft": True,
    }
    stored = (await api("POST", "/v1/mailings", body)).json
    path = f"/mailings/{stored['id']}"
    for page in ("/mailings", path, f"{path}/edit", f"{path}/messages"):
        shown = await pages.browser.get(f"{page}?client={client}")
        assert shown.status == 200
        assert is_harmless(shown), page
    assert HOSTILE in text_of(await pages.browser.get(f"{path}?client={client}"))


async def test_m10_clients_are_isolated_and_viewers_see_no_buttons(
    pages: Desk, client: str
) -> None:
    path = await created(pages, client)
    assert (await pages.browser.get(f"{path}?client=another")).status == 404
    start = f'action="{path}/start?client={client}"'
    assert start in (await pages.browser.get(f"{path}?client={client}")).text
    assert start not in (await pages.viewer.get(f"{path}?client={client}")).text


def closed_hours() -> dict[str, str]:
    """Return local hours that are closed now, in UTC. A mailing then runs, but sends nothing."""
    hour = int(soon(0)[11:13])
    return {"from": f"{(hour + 4) % 24:02}:00", "to": f"{(hour + 5) % 24:02}:00"}
