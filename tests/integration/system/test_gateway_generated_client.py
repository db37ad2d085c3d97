"""S10: a client that openapi-python-client generates from a gateway's document works."""

import asyncio
import importlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.fakes.gateway import base_url, calling, ticket
from tests.fakes.system import System

PACKAGE = "generated_ringback_client"
URL = "https://example.com/hook"
# The generator knows no media type for text in lines.
CONFIGURATION = """
content_type_overrides:
  text/csv: application/octet-stream
  application/x-ndjson: application/octet-stream
"""


@pytest.fixture(scope="module")
def base(services: System) -> str:
    """Return the URL of the gateway."""
    return asyncio.run(base_url(services["gateway"]))


class Generated:
    """The generated package."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.models: Any = _module("models")

    async def call(self, tag: str, operation: str, *path: str, **arguments: Any) -> tuple[int, Any]:
        """Call an operation, and return the status and the parsed response."""
        module: Any = _module(f"api.{tag}.{operation}")
        response = await module.asyncio_detailed(*path, client=self.client, **arguments)
        return int(response.status_code), response.parsed


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{PACKAGE}.{name}")


async def document(base: str) -> str:
    async with calling(base) as call:
        return (await call("GET", "/openapi.json")).text


@pytest.fixture(scope="module")
def package(base: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Generate the package, and make it importable."""
    directory = tmp_path_factory.mktemp("generated")
    (directory / "openapi.json").write_text(asyncio.run(document(base)))
    (directory / "config.yml").write_text(CONFIGURATION)
    scripts = Path(sys.executable).parent
    generation = subprocess.run(
        (
            scripts / "openapi-python-client",
            *("generate", "--path", "openapi.json", "--meta", "none", "--output-path", PACKAGE),
            *("--config", "config.yml", "--fail-on-warning"),
        ),
        cwd=directory,
        env=os.environ | {"PATH": f"{scripts}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert generation.returncode == 0, generation.stdout
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(directory)
        yield


@pytest.fixture
async def generated(base: str, package: None) -> AsyncIterator[Generated]:
    assert package is None  # it only makes the import possible
    client: Any = _module("client")
    async with client.AuthenticatedClient(
        base_url=base, token=ticket("generated"), prefix="", auth_header_name="X-Service-Ticket"
    ) as opened:
        yield Generated(opened)


async def test_finding_d7_a_generated_client_schedules_reads_and_cancels_callbacks(
    generated: Generated,
) -> None:
    models = generated.models
    # Only the mandatory fields are needed.
    body = models.ScheduleCallback(url=URL, delay=3600, group_key="g", event_key="e")
    status, created = await generated.call("callbacks", "create_callback", body=body)
    assert (status, created.status) == (201, "scheduled")
    id_ = created.id

    status, found = await generated.call("callbacks", "get_callback", id_)
    assert (status, found.event_key, found.context) == (200, "e", None)
    assert isinstance(found.run_at, datetime)
    status, page = await generated.call("groups", "list_group", "g", limit=10)
    assert (status, [item.id for item in page.items]) == (200, [id_])

    later = models.CallbackChange(run_at=datetime(2030, 1, 1, tzinfo=UTC))
    status, moved = await generated.call("callbacks", "reschedule_callback", id_, body=later)
    assert (status, moved.result) == (200, "rescheduled")
    status, cancelled = await generated.call("groups", "cancel_callback_by_key", "g", "e")
    assert (status, cancelled.id, cancelled.result) == (200, id_, "cancelled")

    status, problem = await generated.call("callbacks", "create_callback", body=body)
    assert (status, problem.type_) == (409, "urn:ringback:problem:conflict")


async def test_finding_d7_a_generated_client_reads_the_results_of_a_batch(
    generated: Generated,
) -> None:
    models = generated.models
    callbacks = [models.ScheduleCallback(url=url, delay=3600) for url in (URL, "ftp://x")]
    batch = models.Batch(callbacks=callbacks)
    status, result = await generated.call("callbacks", "create_callbacks", body=batch)
    assert status == 200
    accepted, rejected = result.items
    assert isinstance(accepted, models.CallbackCreated)
    assert isinstance(rejected, models.RejectedCallback)
    assert [error.field for error in rejected.error.errors] == ["url"]
    assert json.loads(json.dumps(rejected.to_dict()))["error"]["status"] == 422


async def test_finding_d7_a_generated_client_uses_the_messenger(generated: Generated) -> None:
    models = generated.models
    user = models.NewUser(name="generated", password="correct horse")
    status, registered = await generated.call("messenger", "register_user", body=user)
    assert (status, registered.code) == (200, 10)
    form = models.SignInForm(name=user.name, password=user.password)
    _, signed_in = await generated.call("messenger", "sign_in_user", body=form)

    token = signed_in.token
    message = models.NewMessage(token=token, to_id=registered.user_id, text="Hello")
    _, sent = await generated.call("messenger", "send_message", body=message)
    poll = models.PollForm(token=token, limit=10)
    _, page = await generated.call("messenger", "poll_events", body=poll)
    assert [event.event["message_id"] for event in page.events] == [sent.message_id]
    status, done = await generated.call(
        "messenger", "sign_out_user", body=models.TokenForm(token=token)
    )
    assert (status, done.code) == (200, 10)
