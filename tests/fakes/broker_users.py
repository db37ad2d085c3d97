"""A user of the broker for each service, with the permissions that the docs name."""

import base64
import http.client
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

from deploy.local.broker import Broker

PAGE: Final = Path(__file__).parents[2] / "docs/how-to/use-a-broker-user-for-each-service.md"
_PASSWORD: Final = "ringback"


def permissions() -> dict[str, dict[str, str]]:
    """Return the regular expressions of each service, as the script of the page builds them."""
    page = PAGE.read_text()
    variables = dict(re.findall(r"(?m)^(\w+)='(.*?)'", page))
    call = re.search(r'set_permissions .*\\\n +"(.*)" "(.*)" "(.*)"\n', page)
    assert call
    templates = dict(zip(("configure", "write", "read"), call.groups(), strict=True))
    return {
        name: {
            kind: _expanded(template, variables | {"2": queues, "3": reads, "4": writes})
            for kind, template in templates.items()
        }
        for name, queues, reads, writes in re.findall(
            r"(?m)^permit (\w+) +'(.*)' '(.*)' '(.*)'$", page
        )
    }


@contextmanager
def broker_users(broker: Broker, url: str) -> Iterator[dict[str, str]]:
    """Yield the URL of each service for the virtual host of `url`, with a user of its own."""
    parts = urlsplit(url)
    vhost = parts.path.removeprefix("/")
    urls = {}
    for service, regexes in permissions().items():
        user = f"{vhost}-{service}"
        _call(broker, "PUT", f"/api/users/{user}", {"password": _PASSWORD, "tags": ""})
        _call(broker, "PUT", f"/api/permissions/{quote(vhost, safe='')}/{user}", regexes)
        address = f"{user}:{_PASSWORD}@{parts.hostname}:{parts.port}"
        urls[service] = parts._replace(netloc=address).geturl()
    yield urls
    for service in urls:
        _call(broker, "DELETE", f"/api/users/{vhost}-{service}", None)


def _expanded(template: str, variables: Mapping[str, str]) -> str:
    return re.sub(r"\$(\w+)", lambda use: variables[use[1]], template)


def _call(broker: Broker, method: str, path: str, body: Any) -> None:
    parts = urlsplit(broker.management_url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=30)
    login = base64.b64encode(b"guest:guest").decode()
    connection.request(
        method,
        path,
        None if body is None else json.dumps(body),
        {"Authorization": f"Basic {login}", "Content-Type": "application/json"},
    )
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    assert response.status < http.HTTPStatus.BAD_REQUEST, text
