"""S10, findings D12 and A18: the gateway keeps every promise of its OpenAPI document."""

import asyncio
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any
from uuid import uuid4

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_json
from requests import Response
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.generation.stateful import run_state_machine_as_test

from services.gateway.messenger.codes import is_messenger
from services.gateway.messenger.schemas import (
    CallbackForm,
    NewMessage,
    NewUser,
    PollForm,
    SignInForm,
)
from services.gateway.routes import about, all_routes
from services.gateway.schemas import ReplayChange
from shared.contracts.clients import ClientChange, NewClient
from shared.contracts.endpoints import (
    EndpointChange,
    NewEndpoint,
    NewEndpointMessage,
    Replay,
)
from shared.contracts.events import Event
from shared.contracts.journal_replays import StartReplay
from shared.contracts.mailings import MailingChanges, NewMailing
from shared.contracts.postings import Posting
from shared.contracts.schedule_changes import RescheduleCallback
from shared.contracts.schedule_requests import RetryCallbacks
from shared.contracts.schedules import ScheduleCallback
from shared.http.openapi import document
from tests.fakes.gateway import base_url, ticket
from tests.fakes.system import fresh_database, system

API = schemathesis.openapi.from_dict(
    document(all_routes("https://example.com"), about("X-Service-Ticket"))
)
SERVICES = ("scheduler", "callback", "mailings", "delivery", "subscriptions", "journal")
# Beyond its limits, a valid request is rejected.
LIMITS = {
    f"RINGBACK_GATEWAY_{name}": "1000000"
    for name in (
        "REGISTRATIONS_PER_ADDRESS",
        "SIGN_INS_PER_ADDRESS",
        "SIGN_INS_PER_NAME",
        "CALLBACKS_PER_USER",
        "MESSAGES_PER_USER",
    )
}
UNKNOWN = "00000000-0000-4000-8000-000000000000"
# The contracts of bodies. They have rules about several fields, which JSON Schema does not state.
CONTRACTS: Mapping[str, type[BaseModel]] = {
    "create_callback": ScheduleCallback,
    "add_callback": ScheduleCallback,
    "put_callback": ScheduleCallback,
    "reschedule_callback": RescheduleCallback,
    "reschedule_callback_by_key": RescheduleCallback,
    "retry_callbacks": RetryCallbacks,
    "publish_event": Event,
    "create_posting": Posting,
    "create_client": NewClient,
    "change_client": ClientChange,
    "create_mailing": NewMailing,
    "change_mailing": MailingChanges,
    "register_user": NewUser,
    "sign_in_user": SignInForm,
    "send_message": NewMessage,
    "start_callback": CallbackForm,
    "create_endpoint": NewEndpoint,
    "change_endpoint": EndpointChange,
    "replay_endpoint": Replay,
    "replay_callback": ReplayChange,
    "replay_callbacks": StartReplay,
    "send_endpoint_message": NewEndpointMessage,
    "poll_events": PollForm,
}
# Fields whose validity depends on the time, the configuration, or an earlier response; and
# `filter.target`, which must begin like a URL when callbacks are replayed. Schemathesis
# does not follow the pattern of If-Match in its coverage phase.
CIRCUMSTANCES = {
    "run_at",
    "repeat",
    "notify_scheme.exchange",
    "cursor",
    "group_key",
    "event_key",
    "If-Match",
    "If-None-Match",
    "timezone",
    "header",
    "end_at",
    "since",
    "until",
    "text",
    "template",
    "filter.target",
}
load_all_checks()


@schemathesis.serializer("text/csv", "application/x-ndjson")
def serialize_text(_: Any, value: Any) -> bytes:
    """Send the body as it is."""
    return str(value).encode(errors="surrogatepass")


ALL_CHECKS = {check.__name__: check for check in CHECKS.get_all()}

# Without shrinking, which takes long: the first failing request says enough.
UNSHRUNK = settings(
    max_examples=10,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def base(
    shared_amqp_url: str, database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    with (
        fresh_database(database_url) as url,
        system(
            tmp_path_factory.mktemp("system"),
            shared_amqp_url,
            url,
            *SERVICES,
            # A 504 of a busy machine would contradict an earlier response to the same request.
            RINGBACK_GATEWAY_REQUEST_TIMEOUT="60",
            **LIMITS,
        ) as services,
    ):
        asyncio.run(services.ready())
        yield asyncio.run(base_url(services["gateway"]))


def violates_contract(case: Any) -> bool:
    """Return whether the contract rejects the body, which the schema permits."""
    model = CONTRACTS.get(case.operation.definition.raw["operationId"])
    if model is None:
        return False
    body = case.body
    if model is RescheduleCallback and isinstance(body, dict):
        body = body | {"id": UNKNOWN}
    try:
        TypeAdapter(model).validate_json(to_json(body))
    except (ValidationError, PydanticSerializationError):
        return True
    return False


def inapplicable_checks(case: Any, response: Response) -> list[Any]:
    """Return the checks that a rule outside the schema overrides for this response."""
    names = []
    if case.operation.definition.raw["operationId"] == "create_callbacks":
        names.append("negative_data_rejection")  # each callback has its own result
    if case.operation.definition.raw["operationId"] == "import_clients":
        names.append("negative_data_rejection")  # each line has its own result
    if response.status_code == HTTPStatus.PRECONDITION_FAILED:
        names.append("positive_data_acceptance")  # the entity tag is valid, but not the current one
    if is_messenger(case.operation.path):
        rules = ("cursor: is not a valid cursor", "fingerprint: requires an https URL")
        rule = any(each in response.text for each in rules)
        if rule or violates_contract(case):
            names.append("positive_data_acceptance")
    elif response.status_code == HTTPStatus.UNPROCESSABLE_ENTITY:
        fields = {error["field"] for error in response.json()["errors"]}
        if fields <= CIRCUMSTANCES or violates_contract(case):
            names.append("positive_data_acceptance")
    return [ALL_CHECKS[name] for name in names]


@API.parametrize()
@UNSHRUNK
def test_s10_finding_d12_every_response_is_as_documented(case: Any, base: str) -> None:
    response = case.call(base_url=base)
    case.validate_response(response, excluded_checks=inapplicable_checks(case, response))


def test_s10_finding_d12_a_created_callback_can_be_read_moved_and_cancelled(base: str) -> None:
    class Links(API.as_state_machine()):  # type: ignore[misc]
        """Follow the links of the document."""

        def setup(self) -> None:
            """Begin as a new client: Hypothesis requires that a repeat gets the same responses."""
            self._ticket = ticket(uuid4().hex)

        def get_call_kwargs(self, case: Any) -> dict[str, Any]:  # noqa: ARG002
            return {"base_url": base, "headers": {"X-Service-Ticket": self._ticket}}

        def validate_response(self, response: Any, case: Any, **kwargs: Any) -> None:
            del kwargs  # those of the call
            excluded = inapplicable_checks(case, response)
            case.validate_response(response, excluded_checks=excluded)

    run_state_machine_as_test(Links, settings=settings(UNSHRUNK, stateful_step_count=8))
