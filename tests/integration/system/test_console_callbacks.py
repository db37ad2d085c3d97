"""N6 to N8 in the console: pages about callbacks, on a real broker, scheduler and journal."""

import asyncio
import html
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from yarl import URL

from services.console.sign_in.roles import Role
from services.sandbox.misbehaviour import response
from shared.amqp.codec import Properties
from shared.amqp.message import PERSISTENT
from shared.amqp.publisher import OutgoingMessage, new_id
from shared.contracts.callback import SEND_CALLBACK
from shared.topology import CALLBACKS
from tests.fakes.console import Browser, Console, Shown, running_console
from tests.fakes.journal import declared, fact_publisher
from tests.fakes.receivers import ClientConnection, Receiver, respond, serve
from tests.fakes.system import System
from tests.fakes.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

# What an attacker writes into every field that they control.
ATTACK = "\"'><img src=x onerror=alert(1)><script>alert(2)</script>{{7*7}}"
SECRET = "a-secret-canary"
LATER = "2035-01-01T12:00"


@dataclass(frozen=True)
class World:
    """A console with the services behind it."""

    console: Console
    services: System
    amqp_url: str

    async def send(self, **command: Any) -> str:
        """Publish a SendCallback, and return its id."""
        id_ = command.setdefault("id", uuid4().hex)
        properties = Properties(
            content_type="application/json",
            type=SEND_CALLBACK,
            message_id=new_id(),
            delivery_mode=PERSISTENT,
        )
        body = json.dumps({"hmac_secret": SECRET, "payload": {"n": 1}} | command).encode()
        async with fact_publisher(self.amqp_url, declared()) as publisher:
            await publisher.publish_all([OutgoingMessage(CALLBACKS, properties, body)])
        return str(id_)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(
    services: System, shared_amqp_url: str, shared_database_url: str
) -> AsyncIterator[World]:
    async with running_console(shared_database_url, amqp_url=shared_amqp_url) as console:
        yield World(console, services, shared_amqp_url)


@pytest_asyncio.fixture(loop_scope="module")
async def browser(world: World) -> AsyncIterator[Browser]:
    async with world.console.browser(Role.ADMIN) as browser:
        yield browser


async def hostile(connection: ClientConnection) -> None:
    """Respond with 503 and markup to the first request, then with 200."""
    while True:
        await connection.request()
        status = 503 if len(connection.receiver.requests) == 1 else 200
        await connection.write(response(status, body=ATTACK.encode()))


def url_of(path: str, **query: str) -> str:
    return str(URL.build(path=path, query=query))


def texts(shown: Shown) -> str:
    """Return the text of a page without its tags."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", shown.text)).split()).replace(" :", ":")


class _Markup(HTMLParser):
    """Collects the elements that only an attack adds."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        own_script = tag == "script" and (names.get("src") or "").startswith("/static/")
        if tag in {"img", "style", "iframe"} or (tag == "script" and not own_script):
            self.found.append(tag)
        self.found += [name for name in names if name.startswith("on") or name == "style"]


def foreign_markup(shown: Shown) -> list[str]:
    """Return the elements and attributes of a page that run something, or are inline styles."""
    parser = _Markup()
    parser.feed(shown.text)
    return parser.found


async def page_with(browser: Browser, path: str, *expected: str) -> Shown:
    """Open a page again and again until it shows these texts."""
    latest: list[Shown] = []

    async def shown() -> bool:
        latest[:] = [await browser.get(path)]
        return latest[0].status == 200 and all(text in texts(latest[0]) for text in expected)

    try:
        await until(shown, 30)
    except AssertionError:
        raise AssertionError(texts(latest[0])) from None
    return latest[0]


async def schedule(browser: Browser, client: str, receiver: Receiver, **fields: str) -> str:
    """Schedule a callback with the form, and return its id."""
    form = {"url": receiver.url + "?token=canary", "hmac_secret": SECRET} | fields
    shown = await browser.post(url_of("/callbacks/new", client=client), form)
    assert shown.status == 200, texts(shown)
    assert "The callback is scheduled." in texts(shown)
    return shown.url.query["id"]


def headings(shown: Shown) -> list[str]:
    """Return the headings of the parts of a page."""
    return re.findall(r"<h2>(.*?)</h2>", shown.text)


async def test_n6_a_callback_is_followed_and_nothing_of_others_becomes_markup(
    world: World, browser: Browser
) -> None:
    client, keys = f"{ATTACK} shop", {"group_key": f"{ATTACK} g", "event_key": f"{ATTACK} e"}
    async with serve(hostile) as receiver:
        context = json.dumps({ATTACK: ATTACK})
        id_ = await schedule(browser, client, receiver, context=context, **keys)
        one = url_of("/callbacks/one", client=client, id=id_)
        shown = await page_with(browser, one, "notified", "Ended: notified")
    for expected in (
        *("Scheduled", "Dispatch 1 was published", "Attempt 1 failed with status 503"),
        *("Waits in a retry tier", "Attempt 2 was delivered with status 200", ATTACK),
        *keys.values(),
    ):
        assert expected in texts(shown), expected
    assert "Context" in headings(shown)
    async with world.console.browser(Role.OPERATOR) as operator:
        assert "Context" not in headings(await operator.get(one))
    target = str(URL(receiver.url).origin())
    pages = {
        one: ATTACK,
        # The page finds the owner itself.
        url_of("/callbacks/one", id=id_): f"Client {client}",
        url_of("/callbacks/one/request", client=client, id=id_): "--header",
        url_of("/callbacks", client=client): ATTACK,
        url_of("/callbacks", client=client, group_key=ATTACK): "No callback matches",
        url_of("/callbacks", client=client, **keys): id_,
        url_of("/attempts", client=client): "503",
        url_of("/attempts", client=client, reason=ATTACK): "No attempt matches",
        url_of("/attempts", target=target, status="failed"): client,
        url_of("/attempts", target=target, code="503"): client,
        url_of("/attempts", client=client, since="2020-01-01T00:00", until=LATER): id_,
        url_of("/targets", client=client): target,
        url_of("/targets/one", target=target): "Median",
        url_of("/tail", client=client): client,
        url_of("/tail", target=target, outcome="failed", kind="attempt"): "503",
        url_of("/", client=client): target,
        url_of("/audit", client=client): "schedule",
        url_of("/dead-letters", client=client): "dead letters",
        url_of("/dead-letters/callbacks", reason=ATTACK): "dead letter",
        url_of("/replay", client=client, reason=ATTACK): "No callback matches",
        url_of("/signatures", client=client): "Secret",
    }
    for path, expected in pages.items():
        shown = await page_with(browser, path, expected)
        assert foreign_markup(shown) == [], path
        assert SECRET not in shown.text, path


async def test_n6_a_form_with_faults_is_shown_again_with_the_reasons(browser: Browser) -> None:
    form = {"url": "ftp://example.com", "every": "60", "group_key": "kept"}
    shown = await browser.post("/callbacks/new", form)
    assert shown.status == 422
    assert "url" in texts(shown)
    assert 'value="kept"' in shown.text
    assert 'name="hmac_secret" type="password" value=""' in shown.text
    faults = {
        "context": ("{", "is not valid JSON"),
        "run_at": ("soon", "must be a time"),
        "every": ("often", "must be a number"),
    }
    wrong = {field: value for field, (value, _) in faults.items()}
    shown = await browser.post("/callbacks/new", {"url": "https://example.com"} | wrong)
    assert shown.status == 422
    for field, (_, fault) in faults.items():
        assert f"{field}: {fault}" in texts(shown)


async def test_n6_a_waiting_callback_is_moved_sent_now_and_cancelled(browser: Browser) -> None:
    client = uuid4().hex
    async with serve(respond(200)) as receiver:
        id_ = await schedule(browser, client, receiver, run_at=LATER)
        other = await schedule(browser, client, receiver, run_at=LATER)
        one = url_of("/callbacks/one", client=client, id=id_)
        assert "2035-01-01 12:00:00" in texts(await browser.get(one))

        async def act(action: str, id_: str, **form: str) -> str:
            path = url_of(f"/callbacks/one/{action}", client=client)
            return texts(await browser.post(path, {"id": id_} | form))

        assert "The callback is moved." in await act("move", id_, run_at="2034-01-01T12:00")
        assert "2034-01-01 12:00:00" in texts(await browser.get(one))
        assert "The callback is cancelled." in await act("cancel", id_)
        assert "Nothing was done" in await act("move", id_, run_at=LATER)
        assert "The callback is sent now." in await act("run", other)
        await until(lambda: receiver.requests, 60)
        await page_with(browser, url_of("/callbacks/one", client=client, id=other), "notified")
    audit = await page_with(browser, url_of("/audit", client=client), "schedule", "run")
    for action in ("reschedule", "cancel", "run"):
        assert f"admin@example.com {action} callback" in texts(audit)
    # Another client does not have it.
    shown = await browser.post(url_of("/callbacks/one/cancel", client="other"), {"id": id_})
    assert "does not have this callback" in texts(shown)


async def test_s7_the_schedule_counts_what_is_due_and_a_cron_lists_its_occurrences(
    browser: Browser,
) -> None:
    client = f"{ATTACK} {uuid4().hex}"
    page = url_of("/schedule", client=client)
    assert "Nothing is due within a month" in texts(await browser.get(page))
    soon = (datetime.now(UTC) + timedelta(hours=3)).strftime("%Y-%m-%dT%H:%M")
    async with serve(respond(200)) as receiver:
        for run_at in (soon, LATER):
            await schedule(browser, client, receiver, run_at=run_at)
        repeat = {"cron": "30 6 * * *", "timezone": "Asia/Kathmandu"}
        daily = await schedule(browser, client, receiver, run_at=soon, **repeat)
    shown = await browser.get(page)
    assert re.search(r"Due now 0 In the next 24 hours [12] In the next 31 days 2 ", texts(shown))
    assert "Due by hour" in texts(shown)
    assert "Due by day" in texts(shown)
    assert foreign_markup(shown) == []
    one = texts(await browser.get(url_of("/callbacks/one", client=client, id=daily)))
    assert "Repeats 30 6 * * * in Asia/Kathmandu" in one
    occurrences = one.partition("Next occurrences")[2].partition("Timeline")[0]
    assert occurrences.count("00:45:00 UTC ( in ") == 10
    path = url_of("/callbacks/one/cancel", client=client)
    cancelled = await browser.post(path, {"id": daily})
    assert "Next occurrences" not in texts(cancelled)


async def test_n6_the_kept_request_is_shown_without_secrets(world: World, browser: Browser) -> None:
    headers = {"X-Shop": ATTACK, "Authorization": "Bearer ticket-canary"}
    async with serve(respond(200)) as receiver:
        id_ = f"a/b?c#{uuid4().hex}"
        await world.send(id=id_, target_url=receiver.url, headers=headers, payload={"text": "it's"})
        one = url_of("/callbacks/one", id=id_)
        assert "delivered" in texts(await page_with(browser, one, "Show the kept request"))
    shown = await browser.get(url_of("/callbacks/one/request", id=id_))
    assert shown.status == 200, texts(shown)
    assert """--data-raw '{"text": "it'"'"'s"}'""" in texts(shown)
    assert f"webhook-id: {id_}" in texts(shown)
    assert ATTACK in texts(shown)
    assert SECRET not in shown.text
    assert "ticket-canary" not in shown.text
    async with world.console.browser(Role.OPERATOR) as operator:
        assert "An admin can read it" in texts(await operator.get(one))
        assert (await operator.get(url_of("/callbacks/one/request", id=id_))).status == 403


async def test_n6_the_signature_of_a_received_request_is_checked(
    world: World, browser: Browser
) -> None:
    async with serve(respond(200)) as receiver:
        await world.send(target_url=receiver.url, payload={"b": 1, "a": "ä"})
        await until(lambda: receiver.requests, 60)
    received = receiver.requests[0]
    headers = "\n".join(f"{name}: {value}" for name, value in received.headers.items())
    form = {"headers": headers, "body": received.body.decode(), "secret": SECRET}
    shown = await browser.post("/signatures", form)
    assert texts(shown).count("not verified") == 0
    assert texts(shown).count("verified") == 2
    assert SECRET not in shown.text
    shown = await browser.post("/signatures", form | {"secret": "another"})
    assert texts(shown).count("not verified") == 2


async def test_n7_dead_letters_are_counted_redriven_and_discarded(
    world: World, browser: Browser
) -> None:
    async with serve(hostile_gone) as receiver:
        target = str(URL(receiver.url).origin())
        ids = [await world.send(target_url=receiver.url) for _ in range(3)]
        selection = {"target": target}
        listing = url_of("/dead-letters/callbacks", **selection)
        shown = await page_with(browser, listing, "3 of", *ids)
        assert "Redrive 3 dead letters?" in texts(shown)
        assert "Discard 3 dead letters?" in texts(shown)
        assert "410" in texts(await page_with(browser, "/dead-letters", "callbacks"))
        letter = re.search(r'href="(/dead-letters/callbacks/letter[^"]*)"', shown.text)
        assert letter
        details = await browser.get(html.unescape(letter[1]))
        assert details.status == 200, texts(details)
        assert target in texts(details)
        assert SECRET not in details.text

        receiver_works.set()
        shown = await browser.post("/dead-letters/callbacks/redrive", selection | {"rate": "1000"})
        assert shown.url.path.startswith("/jobs/")
        done = await page_with(browser, str(shown.url.path), "finished")
        assert "3 of 3 done" in texts(done)
        await until(lambda: len(receiver.requests) == 6, 60)
    await page_with(browser, listing, "This queue has no dead letters")
    await page_with(browser, url_of("/callbacks/one", id=ids[0]), "Moved back", "delivered")
    assert "redrive" in texts(await browser.get("/jobs?kind=redrive"))
    assert "admin@example.com redrive" in texts(await browser.get("/audit"))
    # Operators may redrive, and only admins discard.
    async with world.console.browser(Role.OPERATOR) as operator:
        assert (await operator.post("/dead-letters/callbacks/discard")).status == 403
    shown = await browser.post("/dead-letters/callbacks/discard", selection)
    await page_with(browser, str(shown.url.path), "finished", "0 of 0 done")


async def test_n6_callbacks_are_replayed_one_and_all_that_match(
    world: World, browser: Browser
) -> None:
    async with serve(respond(200)) as receiver, serve(respond(200)) as other:
        target = str(URL(receiver.url).origin())
        ids = [await world.send(target_url=receiver.url) for _ in range(2)]
        for id_ in ids:
            await page_with(browser, url_of("/callbacks/one", id=id_), "Send again", "delivered")
        selection = {"target": target, "status": "delivered"}
        await page_with(browser, url_of("/replay", **selection), "Replay 2 callbacks?")
        shown = await browser.post("/replay", selection | {"rate": "1000"})
        assert "2 of 2 done" in texts(await page_with(browser, shown.url.path, "finished"))
        await until(lambda: len(receiver.requests) == 4, 60)

        form = {"id": ids[0], "url": other.url}
        assert "sent again" in texts(await browser.post("/callbacks/one/replay", form))
        await until(lambda: other.requests, 60)
        assert other.requests[0].headers["webhook-id"] == ids[0]
        one = url_of("/callbacks/one", id=ids[0])
        await page_with(browser, one, "Sent again", "by admin@example.com")
        # The other URL would get headers that only admins may read.
        async with world.console.browser(Role.OPERATOR) as operator:
            assert "Another URL" not in texts(await operator.get(one))
            assert (await operator.post("/callbacks/one/replay", form)).status == 403
            refused = await operator.post("/replay", selection | {"rate": "1", "url": other.url})
            assert refused.status == 403
        unknown = {"id": "unknown", "url": other.url}
        assert (await browser.post("/callbacks/one/replay", unknown)).status == 404


async def test_n8_a_target_is_paused_and_resumed(world: World, browser: Browser) -> None:
    async with serve(respond(200)) as receiver:
        target = str(URL(receiver.url).origin())
        await world.send(target_url=receiver.url)
        one = url_of("/targets/one", target=target)
        await page_with(browser, "/targets", target)
        shown = await browser.post("/targets/pause", {"target": target})
        assert "The target is paused." in texts(shown)
        assert f"{target} is paused" in texts(await page_with(browser, "/", f"{target} is paused"))
        assert 'action="/targets/resume"' in (await page_with(browser, one, "paused")).text
        shown = await browser.post("/targets/resume", {"target": target})
        assert "The target is resumed." in texts(shown)
        await page_with(browser, one, "receives callbacks")


receiver_works = asyncio.Event()


async def hostile_gone(connection: ClientConnection) -> None:
    """Respond with 410, until it works."""
    while True:
        await connection.request()
        await connection.write(response(200 if receiver_works.is_set() else 410, body=b"gone"))


async def test_n6_faults_of_the_url_are_pages(browser: Browser) -> None:
    for path, status in {
        "/callbacks/one": 404,
        "/callbacks/one?id=unknown": 404,
        "/dead-letters/unknown": 404,
        "/jobs/unknown": 422,
        f"/jobs/{uuid4()}": 404,
        "/targets/one": 404,
        "/attempts?status=odd": 422,
        "/attempts?since=soon": 422,
        "/attempts?cursor=odd": 422,
        "/tail?kind=odd": 422,
    }.items():
        assert (await browser.get(path)).status == status, path
    assert (await browser.get("/callbacks?id=a/b&client=shop")).url.query["id"] == "a/b"


async def test_n8_the_live_overview_and_tail_send_what_is_new(
    world: World, browser: Browser
) -> None:
    async with serve(respond(200)) as receiver:
        id_ = uuid4().hex
        tail = asyncio.create_task(event_with(browser, "/live/tail", id_))
        figures = await event_with(browser, "/live/overview", "Findings")
        assert "<html" not in figures

        async def sent() -> bool:
            await world.send(id=id_, target_url=receiver.url)
            return tail.done()

        await until(sent, 60)
    assert f"/callbacks/one?id={id_}" in await tail


async def event_with(browser: Browser, path: str, text: str) -> str:
    """Return the first event of a stream with this text."""
    async with asyncio.timeout(60), browser.http.get(browser.origin + path) as stream:
        assert stream.content_type == "text/event-stream"
        event = ""
        async for line in stream.content:
            event += line.decode()
            if line == b"\n":
                if text in event:
                    return event
                event = ""
    raise AssertionError(f"the stream ended without {text}")
