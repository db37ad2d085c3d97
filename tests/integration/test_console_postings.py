"""Postings, events and templates in the console, on real services."""

import html
import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from yarl import URL

from services.console.security import FRAMED_POLICY, FRAMING_POLICY
from tests.fakes.sending_pages import HOSTILE, Desk, desk, is_harmless, running_services, text_of
from tests.fakes.system import System
from tests.fakes.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

USERS = "http://127.0.0.1:1/users"


@pytest.fixture(scope="module")
def services(
    shared_amqp_url: str, database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[System, str]]:
    directory = tmp_path_factory.mktemp("console")
    names = ("mailings", "ingestion")
    with running_services(shared_amqp_url, database_url, directory, *names) as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pages(services: tuple[System, str], shared_amqp_url: str) -> AsyncIterator[Desk]:
    async with desk(*services, shared_amqp_url) as found:
        yield found


async def test_postings_show_their_progress_and_messages(pages: Desk) -> None:
    assert "No postings yet" in text_of(await pages.browser.get("/postings?client=shop"))
    posting: dict[str, Any] = {
        "receivers": USERS,
        "template": "email/welcome.md",
        "delivery_type": ["email"],
        "template_context": {"username": HOSTILE},
        "from_event": "<script>alert(1)</script>",
    }
    api = pages.call.as_client("shop")
    stored = await api("POST", "/v1/postings", posting)
    assert stored.status == 202, stored.text
    listed = await pages.browser.get("/postings?client=shop")
    assert "email/welcome.md" in text_of(listed)
    shown = await pages.browser.get(f"/postings/{stored.json['id']}?client=shop")
    assert "email/welcome.md" in text_of(shown)
    assert is_harmless(shown)
    assert "No messages" in text_of(shown)
    none = await pages.browser.get("/postings?client=shop&from_event=other")
    assert "No postings of this event" in text_of(none)


async def test_an_event_is_published_and_its_posting_shown(pages: Desk) -> None:
    details = {"username": "vera", "user": "http://127.0.0.1:1/users/7"}
    form = {"from_service": "auth", "event": "user_signed_up", "details": json.dumps(details)}
    shown = await pages.browser.post("/events?client=auth", {**form, "event_id": "event-7"})
    assert "The event is published." in text_of(shown)
    assert shown.url.path == "/postings"

    async def created() -> bool:
        found = await pages.browser.get(shown.url.with_query(client="auth"))
        return "email/" in found.text

    await until(created)
    other = await pages.browser.post("/events?client=shop", form)
    assert other.status == 422
    assert "must be the selected client" in text_of(other)
    wrong = await pages.browser.post("/events", {**form, "event": "a b", "details": "[]"})
    assert wrong.status == 422
    for name in ("event", "details"):
        assert f'href="#field-{name}"' in wrong.text
    assert "Operators can publish" in text_of(await pages.viewer.get("/events"))


async def test_m11_a_template_is_shown_in_a_frame_that_runs_nothing(pages: Desk) -> None:
    listed = await pages.browser.get("/templates")
    assert "email/new_movies.md" in text_of(listed)
    assert "movies (fetched)" in text_of(listed)
    shown = await pages.browser.get("/templates/preview?name=email/new_movies.md")
    assert "The Long Queue" in text_of(shown)
    assert shown.headers["Content-Security-Policy"] == FRAMING_POLICY
    source = re.search(r'<iframe [^>]*sandbox src="([^"]+)"', shown.text)
    assert source
    frame = await pages.browser.get(html.unescape(source[1]))
    assert frame.headers["Content-Security-Policy"] == FRAMED_POLICY
    assert "X-Frame-Options" not in frame.headers
    assert "The Long Queue" in frame.text
    sms = await pages.browser.get("/templates/preview?name=sms/phone_confirmation.md")
    assert "segment" in text_of(sms)
    assert "<iframe" not in sms.text


async def test_n8_hostile_data_of_a_template_stays_text(pages: Desk) -> None:
    query = {"name": "email/welcome.md", "context": json.dumps({"username": HOSTILE})}
    for path in ("/templates/preview", "/templates/frame"):
        url = URL(pages.browser.origin).with_path(path).with_query(query)
        shown = await pages.browser.get(url)
        assert shown.status == 200, shown.text
        assert "<script>alert" not in shown.text
    wrong = URL(pages.browser.origin).with_path("/templates/preview")
    for context in ("{", "[]", "{}"):
        shown = await pages.browser.get(wrong.with_query({**query, "context": context}))
        assert "The template cannot be shown" in text_of(shown), context
