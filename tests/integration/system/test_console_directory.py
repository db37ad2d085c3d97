"""M1, M10 and S4 in the console: clients, customers' endpoints, and their messages."""

import re

import aiohttp
import pytest

from tests.fakes.sending_pages import HOSTILE, Desk, is_harmless, text_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

URL = "https://customer.example.com/webhooks"


async def test_m10_a_client_is_created_found_changed_and_deleted(pages: Desk, client: str) -> None:
    assert "No clients yet" in text_of(await pages.browser.get(f"/clients?client={client}"))
    api = pages.call.as_client(client)
    fields = {"phone": "79160000001", "timezone": "Europe/Moscow", "tag": "vip"}
    shown = await pages.browser.post(f"/clients/new?client={client}", fields, follow=False)
    assert shown.status == 303, shown.text
    path = shown.location.path
    for query in ("phone=7916", "tag=vip", "operator_code=916", "timezone=Europe/Moscow"):
        found = await pages.browser.get(f"/clients?client={client}&{query}")
        assert path in found.text, query
    none = await pages.browser.get(f"/clients?client={client}&tag=other")
    assert "No clients match the filter" in text_of(none)

    etag = (await api("GET", f"/v1{path}")).json["etag"]
    changes = {"phone": "79260000001", "timezone": "UTC", "tag": "", "etag": etag}
    shown = await pages.browser.post(f"{path}?client={client}", changes)
    assert "The client is changed." in text_of(shown)
    stored = (await api("GET", f"/v1{path}")).json
    assert (stored["tag"], stored["operator_code"], stored["timezone"]) == (None, "926", "UTC")
    stale = await pages.browser.post(f"{path}?client={client}", {**changes, "tag": "b"})
    assert stale.status == 412

    again = {"phone": "79260000001", "timezone": "UTC"}
    taken = await pages.browser.post(f"/clients/new?client={client}", again)
    assert taken.status == 422
    assert 'role="alert"' in taken.text
    wrong = {"phone": "1", "timezone": "Nowhere"}
    shown = await pages.browser.post(f"/clients/new?client={client}", wrong)
    assert shown.status == 422
    for name in ("phone", "timezone"):
        assert f'href="#field-{name}"' in shown.text
    assert 'value="Nowhere"' in shown.text
    shown = await pages.browser.post(f"{path}/delete?client={client}")
    assert "The client is deleted." in text_of(shown)
    assert (await pages.browser.get(f"{path}?client={client}")).status == 404
    assert await pages.actions(client) == ["client.create", "client.change", "client.delete"]


async def test_m1_a_file_is_imported_with_a_report_of_bad_lines(pages: Desk, client: str) -> None:
    lines = b"phone;timezone;tag\r\n79160000001;UTC;vip\r\n1;UTC;<b>x\r\n79160000002;Nowhere;\r\n"
    report = await upload(pages, client, lines, "clients.csv")
    assert "Created 1" in report
    assert "Not imported 2" in report
    assert re.search(r"\b3 .*is not a phone number", report)
    lines = b'{"phone": "79160000001", "timezone": "UTC"}\n{"phone"'
    report = await upload(pages, client, lines, "clients.jsonl")
    assert "Updated 1" in report
    assert "2 is not JSON" in report
    bad = await upload(pages, client, b"phone,<script>alert(1)</script>\n", "clients.csv")
    assert "header : unknown column" in bad
    assert "file : is required" in await upload(pages, client, b"", "")
    found = (await pages.call.as_client(client)("GET", "/v1/clients")).json["items"]
    assert [each["phone"] for each in found] == ["79160000001"]
    assert await pages.actions(client) == ["client.import", "client.import"]


async def upload(pages: Desk, client: str, content: bytes, name: str) -> str:
    """Import a file with the form, and return the text of the page after it."""
    browser = pages.browser
    form = aiohttp.FormData({"csrf": (await browser.get("/")).csrf})
    form.add_field("file", content, filename=name, content_type="application/octet-stream")
    url = f"{browser.origin}/clients/import?client={client}"
    headers = {"Origin": browser.origin}
    async with browser.http.post(url, data=form, headers=headers) as response:
        text = await response.text()
    assert "<script>alert" not in text
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text))


async def test_s4_an_endpoint_is_created_with_its_secret_shown_once(
    pages: Desk, client: str
) -> None:
    shown = await pages.browser.get(f"/endpoints?client={client}")
    assert "No endpoints yet" in text_of(shown)
    form = {
        "url": URL,
        "event_types": "invoice.*\r\nuser.created",
        "description": "Billing",
        "headers": '{"X-Tenant": "canary"}',
        "rate_limit": "2.5",
        "ordered": "true",
        "key": "a-key",
    }
    shown = await pages.browser.post(f"/endpoints/new?client={client}", form)
    secret = re.search(r"whsec_[A-Za-z0-9+/=]+", shown.text)
    assert secret, shown.text
    again = await pages.browser.post(f"/endpoints/new?client={client}", form)
    assert secret[0] in again.text  # the same endpoint: the form was sent twice
    api = pages.call.as_client(client)
    [stored] = (await api("GET", "/v1/endpoints")).json["items"]
    assert stored["event_types"] == ["invoice.*", "user.created"]
    assert (stored["rate_limit"], stored["ordered"]) == (2.5, True)
    path = f"/endpoints/{stored['id']}"
    page = await pages.browser.get(f"{path}?client={client}")
    assert "X-Tenant" in page.text
    for hidden in (secret[0], "canary"):
        assert hidden not in page.text
        assert hidden not in (await pages.browser.get(f"{path}/edit?client={client}")).text

    changed = {"url": f"{URL}/2", "event_types": "*", "etag": stored["etag"]}
    shown = await pages.browser.post(f"{path}/edit?client={client}", changed)
    assert "The endpoint is changed." in text_of(shown)
    stored = (await api("GET", f"/v1{path}")).json
    assert stored["headers"] == {"X-Tenant": "canary"}
    assert (stored["url"], stored["ordered"], stored["rate_limit"]) == (f"{URL}/2", False, None)
    for action, status in (("pause", "paused"), ("resume", "active")):
        await pages.browser.post(f"{path}/{action}?client={client}")
        assert (await api("GET", f"/v1{path}")).json["status"] == status
    rotated = await pages.browser.post(f"{path}/rotate?client={client}", {"key": "other"})
    found = re.search(r"whsec_[A-Za-z0-9+/=]+", rotated.text)
    assert found
    assert found[0] != secret[0]
    assert "The endpoint is deleted." in text_of(
        await pages.browser.post(f"{path}/delete?client={client}")
    )
    done = ("create", "create", "change", "pause", "resume", "rotate_secret", "delete")
    assert await pages.actions(client) == [f"endpoint.{action}" for action in done]
    wrong = {"url": "ftp://x", "event_types": "", "headers": "{"}
    shown = await pages.browser.post(f"/endpoints/new?client={client}", wrong)
    assert shown.status == 422
    assert 'href="#field-headers"' in shown.text


async def test_s4_messages_are_sent_shown_and_replayed(pages: Desk, client: str) -> None:
    api = pages.call.as_client(client)
    body = {"url": URL, "event_types": ["*"]}
    endpoint = (await api("POST", "/v1/endpoints", body)).json["id"]
    path = f"/endpoints/{endpoint}"
    assert "No messages yet" in text_of(await pages.browser.get(f"{path}?client={client}"))
    form = {"id": "a-message.7:x", "event_type": "invoice.paid", "payload": '{"total": "12"}'}
    shown = await pages.browser.post(f"/messages/new?client={client}", form)
    assert "The message is stored for 1 endpoint." in text_of(shown)
    assert '"total": "12"' in text_of(shown)
    assert endpoint in shown.text
    shown = await pages.browser.get(f"{path}?client={client}")
    assert "a-message.7:x" in text_of(shown)
    replayed = await pages.browser.post(
        f"{path}/replay?client={client}", {"since": "2020-01-01T00:00"}
    )
    assert "are sent again" in text_of(replayed)
    # The page of the endpoint lists its replays.
    assert re.search(r"Replays .*2020-01-01 00:00:00 UTC", text_of(replayed))
    assert (await pages.browser.post(f"{path}/replay?client={client}")).status == 422
    tested = await pages.browser.post(f"{path}/test?client={client}")
    assert "A test message is sent." in text_of(tested)
    assert await pages.actions(client) == ["message.send", "endpoint.replay", "endpoint.test"]
    missing = await pages.browser.get(f"/messages?client={client}&id=none")
    assert missing.status == 404
    assert "No message has failed" in text_of(await pages.browser.get(f"/messages?client={client}"))


async def test_n8_hostile_clients_endpoints_and_payloads_stay_text(
    pages: Desk, client: str
) -> None:
    api = pages.call.as_client(client)
    fields = {"phone": "79160000001", "timezone": "UTC", "tag": HOSTILE}
    stored = (await api("POST", "/v1/clients", fields)).json
    body = {
        "url": "https://example.com/<script>alert(1)</script>",
        "event_types": ["*"],
        "description": HOSTILE,
        "headers": {"X-A": HOSTILE},
    }
    endpoint = await api("POST", "/v1/endpoints", body)
    assert endpoint.status == 201, endpoint.text
    message = {"id": "<img~src=x~onerror=alert(1)>", "event_type": "a", "payload": HOSTILE}
    assert (await api("POST", "/v1/messages", message)).status == 202
    path = f"/endpoints/{endpoint.json['id']}"
    for page in (
        *("/clients", f"/clients/{stored['id']}", "/endpoints", path, f"{path}/edit"),
        "/messages?id=%3Cimg~src=x~onerror=alert(1)%3E",
    ):
        query = "&" if "?" in page else "?"
        shown = await pages.browser.get(f"{page}{query}client={client}")
        assert shown.status == 200, page
        assert is_harmless(shown), page
    assert HOSTILE in text_of(await pages.browser.get(f"/clients/{stored['id']}?client={client}"))


async def test_m10_viewers_see_directories_without_buttons(pages: Desk, client: str) -> None:
    api = pages.call.as_client(client)
    fields = {"phone": "79160000001", "timezone": "UTC"}
    stored = (await api("POST", "/v1/clients", fields)).json
    shown = await pages.viewer.get(f"/clients/{stored['id']}?client={client}")
    assert "79160000001" in shown.text
    assert "/delete" not in shown.text
    assert (await pages.viewer.get(f"/clients/{stored['id']}?client=another")).status == 404
