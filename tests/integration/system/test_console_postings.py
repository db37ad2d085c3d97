"""Postings, events and templates in the console, on real services."""

import html
import json
import re
from typing import Any

import pytest
from yarl import URL

from services.console.security import FRAMED_POLICY, FRAMING_POLICY
from tests.fakes.sending_pages import HOSTILE, Desk, is_harmless, text_of
from tests.fakes.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

USERS = "http://127.0.0.1:1/users"


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


async def test_a_posting_is_created_with_the_form(pages: Desk, client: str) -> None:
    page = f"/postings/new?client={client}"
    shown = await pages.browser.get(f"{page}&template=sms/phone_confirmation.md")
    assert '<option value="sms/phone_confirmation.md" selected>' in shown.text
    key = re.search(r'name="key" value="([^"]+)"', shown.text)
    assert key
    form = {
        "template": "email/welcome.md",
        "receivers": USERS,
        "channel-email": "true",
        "priority": "urgent",
        "expires_in": "120 sec",
        "from_event": "event-9",
        "template_context": '{"username": "vera"}',
        "key": key[1],
    }
    for wrong, field in (
        ({"template_context": "{"}, "template_context"),
        ({"template_context": "[]"}, "template_context"),
        ({"receivers": "ftp://users"}, "receivers"),
        ({"expires_in": "soon"}, "expires_in"),
        ({"priority": "high"}, "priority"),
    ):
        shown = await pages.browser.post(page, form | wrong)
        assert shown.status == 422, wrong
        assert f'href="#field-{field}"' in shown.text, wrong
        assert 'name="channel-email" type="checkbox" value="true" checked' in shown.text
    without = {name: value for name, value in form.items() if name != "channel-email"}
    assert 'href="#field-delivery_type"' in (await pages.browser.post(page, without)).text

    # A form that is sent twice creates one posting.
    first = await pages.browser.post(page, form, follow=False)
    second = await pages.browser.post(page, form, follow=False)
    assert (first.status, second.location) == (303, first.location)
    stored = (await pages.call.as_client(client)("GET", f"/v1{first.location.path}")).json
    assert (stored["template"], stored["delivery_type"]) == ("email/welcome.md", ["email"])
    assert stored["from_event"] == "event-9"
    assert await pages.actions(client) == ["posting.create", "posting.create"]
    assert (await pages.viewer.get(page)).status == 403


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
    assert await pages.actions("auth") == ["event.publish"]
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
