"""The page of webhooks: mailboxes and their deliveries."""

import json
from html import escape
from urllib.parse import quote

from yarl import URL

from services.sandbox.layout import page_html, tag, time_of_day
from services.sandbox.store import MAX_STORED_BYTES, Delivery, Mailbox


def render(
    mailboxes: list[Mailbox], deliveries: list[Delivery], chosen: str | None, url: URL
) -> bytes:
    """Render the page.

    Args:
        mailboxes: all of them.
        deliveries: the ones to show, newest first.
        chosen: the only mailbox whose deliveries are shown, if any.
        url: the URL of the page, for the example.
    """
    boxes = "".join(_mailbox(box, chosen) for box in sorted(mailboxes, key=lambda box: box.name))
    title = (
        f"Last deliveries to {escape(chosen)} · <a href='/'>show all</a>"
        if chosen
        else ("Last deliveries")
    )
    main = (
        (f"<h2>Mailboxes</h2><div class=mailboxes>{boxes}</div>" if boxes else "")
        + f"<h2>{title}</h2>"
        + ("".join(map(_delivery, deliveries)) or _empty(chosen, url))
    )
    return page_html(main, here="/", json=("/api/deliveries", "/api/mailboxes"))


def _mailbox(box: Mailbox, chosen: str | None) -> str:
    settings = box.settings
    behaviour = "responds 200" + (
        " if the signature is valid" if settings.verify else " to everything"
    )
    if settings.behaviour is not None:
        fields = settings.behaviour.model_dump(exclude={"kind"}, exclude_none=True)
        behaviour = f"behaviour: {settings.behaviour.kind.replace('_', ' ')}"
        if fields:
            behaviour += ", " + ", ".join(f"{name} {value}" for name, value in fields.items())
        if box.times_left is not None:
            behaviour += f" · {box.times_left} of {settings.times} left"
        elif settings.times is not None:
            behaviour += f" · for {settings.times} requests of each webhook-id"
    return (
        f"<div class='card mailbox{' chosen' if box.name == chosen else ''}'>"
        f"<a href='/?mailbox={quote(box.name)}'>{escape(box.name)}</a>"
        f"<p>{box.received:,} received, {box.verified:,} verified</p>"
        f"<p>{escape(behaviour)}</p></div>"
    )


def _delivery(delivery: Delivery) -> str:
    tags = []
    if delivery.attempt is not None:
        tags.append(tag(f"attempt {delivery.attempt}", ""))
    tags.append(
        tag("verified", "good") if delivery.signatures.verified else tag("not verified", "bad")
    )
    tags.append(_response_tag(delivery))
    faults = "".join(f"<p class=fault>{escape(fault)}</p>" for fault in delivery.signatures.faults)
    headers = "\n".join(f"{name}: {value}" for name, value in delivery.headers.items())
    return (
        "<article class='card delivery'><div class=line>"
        f"{time_of_day(delivery.received_at)}"
        f"<span class=name>{escape(delivery.mailbox)}</span>"
        f"<code>{escape(delivery.method)} {escape(delivery.path)}</code>"
        f"<code class=id>{escape(delivery.webhook_id or '')}</code>"
        f"<span class=tags>{''.join(tags)}</span></div>"
        f"{faults}<pre>{escape(_readable(delivery))}</pre>"
        f"<details id=headers-{delivery.number}><summary>{len(delivery.headers)} headers</summary>"
        f"<pre>{escape(headers)}</pre></details></article>"
    )


def _response_tag(delivery: Delivery) -> str:
    if delivery.status is None:
        return tag(f"no complete response · {delivery.behaviour}", "odd")
    text = f"status {delivery.status}"
    if delivery.behaviour:
        text += f" · {delivery.behaviour}"
    good = delivery.status < 300 and delivery.behaviour is None  # noqa: PLR2004 - HTTP's success
    return tag(text, "good" if good else "odd")


def _readable(delivery: Delivery) -> str:
    """Return the body, indented if it is complete JSON."""
    text = delivery.body.decode(errors="replace")
    if delivery.body_size > len(delivery.body):
        return f"{text}…\n({delivery.body_size:,} bytes; the first {MAX_STORED_BYTES:,} are stored)"
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text or "(empty)"


def _empty(chosen: str | None, url: URL) -> str:
    hook = url.with_path(f"/hooks/{chosen or 'demo'}").with_query(None)
    example = f"""curl -d '{{"hello": "world"}}' {hook}"""
    return (
        "<div class='card empty'><p>No webhooks yet. Send an unsigned one to begin with. It is "
        "shown here, and the response is 401.</p>"
        f"<pre>{escape(example)}</pre></div>"
    )
