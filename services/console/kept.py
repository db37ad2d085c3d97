"""What a kept request looks like on the wire, and as a command of curl. Pure."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

# What stands for a signature, which needs the secret.
SIGNATURE: Final = "<signature>"


@dataclass(frozen=True, slots=True)
class WireRequest:
    """The HTTP request of an attempt, without its signatures."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: str


def wire_request(callback_id: str, request: Mapping[str, Any]) -> WireRequest:
    """Return the HTTP request that a SendCallback leads to."""
    payload, form = request.get("payload"), request.get("format", "json")
    headers = dict(request.get("headers") or {})
    headers["webhook-id"] = callback_id
    url, body = str(request.get("target_url", "")), ""
    if form == "json":
        headers["Content-Type"] = "application/json"
        body = json.dumps(payload, sort_keys=True)
    else:
        encoded = urlencode({name: _text(value) for name, value in sorted((payload or {}).items())})
        if form == "form":
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            body = encoded
        else:
            parts = urlsplit(url)
            query = "&".join(part for part in (parts.query, encoded) if part)
            url = parts._replace(query=query).geturl()
    if not request.get("unsigned"):
        headers |= {
            "webhook-timestamp": "<timestamp>",
            "webhook-signature": SIGNATURE,
            "X-Signature": SIGNATURE,
        }
    return WireRequest(str(request.get("target_method", "POST")), url, headers, body)


def curl(request: WireRequest) -> str:
    """Return a command that sends this request; whoever runs it fills in the signature."""
    parts = [f"curl --request {shlex.quote(request.method)} {shlex.quote(request.url)}"]
    parts += [
        f"--header {shlex.quote(f'{name}: {value}')}" for name, value in request.headers.items()
    ]
    if request.body:
        parts.append(f"--data-raw {shlex.quote(request.body)}")
    return " \\\n  ".join(parts)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
