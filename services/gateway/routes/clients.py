"""The routes `/v1/clients`: each sends a request to mailings, which validates the fields."""

from dataclasses import replace
from http import HTTPStatus
from typing import Final

from aiohttp import web
from pydantic_core import to_json

from services.gateway import examples
from services.gateway.middleware import RECIPIENT_ID
from services.gateway.parsing import if_match, json_body
from services.gateway.responses import json_response
from services.gateway.routes.client_import import import_clients
from services.gateway.routes.declaration import (
    BODY_FAILURES,
    ETAG_HEADER,
    IF_MATCH,
    IF_NONE_MATCH,
    Dependencies,
    Route,
    failures,
    ok,
    pagination,
    path_id,
    problem,
)
from services.gateway.routes.resources import changed, etag, found, id_in_path, listing
from shared.amqp.rpc import RequestContext
from shared.contracts.client_requests import (
    CHANGE_CLIENT,
    CREATE_CLIENT,
    DEFAULT_PAGE_SIZE,
    DELETE_CLIENT,
    GET_CLIENT,
    LIST_CLIENTS,
    MAX_PAGE_SIZE,
    ClientPage,
    ClientsImported,
)
from shared.contracts.clients import (
    OPERATOR_CODE_PATTERN,
    PHONE_PREFIX_PATTERN,
    TAG_PATTERN,
    TIMEZONE_PATTERN,
    Client,
    ClientChange,
    NewClient,
)
from shared.http.openapi import Body, Parameter, Response, TextBody, link

TAG: Final = "clients"

FAILURES: Final = failures(
    "the broker, the database or mailings is unreachable", "Mailings did not respond in time"
)
_NOT_FOUND: Final = {404: problem("The caller has no client with this id.")}
_CONFLICT: Final = {409: problem("Another client has this phone.")}
_PRECONDITION_FAILED: Final = {412: problem("The client has changed since its `ETag` was read.")}
_ID: Final = path_id("client", examples.ID)
_CLIENT: Final = {
    "id": examples.ID,
    "phone": "79161234567",
    "operator_code": "916",
    "tag": "regular",
    "timezone": "Europe/Moscow",
    "created_at": "2026-11-20T12:00:00Z",
    "updated_at": "2026-11-20T12:00:00Z",
    "etag": '"1"',
}
_FOUND: Final = replace(ok("The client.", Client, _CLIENT), headers=ETAG_HEADER)
_NOT_MODIFIED: Final = {304: Response("The client still has this `ETag`.", headers=ETAG_HEADER)}


def routes() -> tuple[Route, ...]:
    """Return the routes."""
    return (
        Route(
            method="POST",
            path="/v1/clients",
            operation_id="create_client",
            handler=create_client,
            tag=TAG,
            summary="Create a client",
            description="The phone identifies a client among those of the caller.",
            body=Body(
                NewClient,
                {
                    "All fields": {
                        "phone": "79161234567",
                        "operator_code": "916",
                        "tag": "regular",
                        "timezone": "Europe/Moscow",
                    },
                    "Mandatory fields": {"phone": "79031234567", "timezone": "Asia/Omsk"},
                },
            ),
            responses={
                201: Response(
                    "Created.",
                    Body(Client, {"Response": _CLIENT}),
                    {"Location": "The URL of the client.", **ETAG_HEADER},
                    {
                        name: link(name, text, id="$response.body#/id")
                        for name, text in (
                            ("get_client", "The client."),
                            ("change_client", "Change it."),
                            ("delete_client", "Delete it."),
                        )
                    },
                ),
                **_CONFLICT,
                **BODY_FAILURES,
                **FAILURES,
            },
        ),
        Route(
            method="GET",
            path="/v1/clients",
            operation_id="list_clients",
            handler=listing(LIST_CLIENTS),
            tag=TAG,
            summary="List and search clients",
            description="Ordered by id, which is the order of creation; with `phone` ordered by"
            " phone. A client must match every given filter.",
            parameters=(
                _filter("phone", "The phone, or its beginning.", PHONE_PREFIX_PATTERN, "7916"),
                _filter("operator_code", "The operator code.", OPERATOR_CODE_PATTERN, "916"),
                _filter("tag", "The tag.", TAG_PATTERN, "regular"),
                _filter("timezone", "The time zone.", TIMEZONE_PATTERN, "Europe/Moscow"),
                *pagination(max_size=MAX_PAGE_SIZE, default_size=DEFAULT_PAGE_SIZE),
            ),
            responses={
                200: ok(
                    "A page of clients.", ClientPage, {"items": [_CLIENT], "next_cursor": None}
                ),
                **FAILURES,
            },
        ),
        Route(
            method="GET",
            path="/v1/clients/{id}",
            operation_id="get_client",
            handler=get_client,
            tag=TAG,
            summary="Get a client",
            description="Clients of another caller do not exist for you.",
            parameters=(_ID, IF_NONE_MATCH),
            responses={200: _FOUND, **_NOT_MODIFIED, **_NOT_FOUND, **FAILURES},
        ),
        Route(
            method="PATCH",
            path="/v1/clients/{id}",
            operation_id="change_client",
            handler=change_client,
            tag=TAG,
            summary="Change a client",
            description="A new phone without an operator code brings its own. Messages in queues"
            " keep the phone.",
            parameters=(_ID, IF_MATCH),
            body=Body(
                ClientChange,
                {
                    "Another tag": {"tag": "vip"},
                    "Without a tag, in another time zone": {"tag": None, "timezone": "Asia/Omsk"},
                },
            ),
            responses={
                200: _FOUND,
                **_NOT_FOUND,
                **_CONFLICT,
                **_PRECONDITION_FAILED,
                **BODY_FAILURES,
                **FAILURES,
            },
        ),
        Route(
            method="DELETE",
            path="/v1/clients/{id}",
            operation_id="delete_client",
            handler=delete_client,
            tag=TAG,
            summary="Delete a client",
            description="The client gets no message that is not published yet. A message in a queue"
            " is still sent. Messages keep the client's id and operator code.",
            parameters=(_ID, IF_MATCH),
            responses={
                204: Response("Deleted."),
                **_NOT_FOUND,
                **_PRECONDITION_FAILED,
                **FAILURES,
            },
        ),
        Route(
            method="POST",
            path="/v1/clients/import",
            operation_id="import_clients",
            handler=import_clients,
            tag=TAG,
            summary="Import clients",
            description="Creates a client for each line, or replaces the one with the same phone."
            " CSV begins with a line that names its columns; JSON lines have an object each. The"
            " body may have any length. Lines that are not valid are reported, and all others are"
            " imported. A repeat of the same import changes nothing.",
            body=TextBody(
                {
                    "text/csv": "phone,operator_code,tag,timezone\n"
                    "79161234567,916,regular,Europe/Moscow\n"
                    "79031234567,,,Asia/Omsk\n",
                    "application/x-ndjson": '{"phone": "79161234567", "tag": "regular",'
                    ' "timezone": "Europe/Moscow"}\n',
                }
            ),
            responses={
                200: ok(
                    "The number of lines, and up to 1,000 that were not imported.",
                    ClientsImported,
                    {
                        "created": 2,
                        "updated": 1,
                        "failed": 1,
                        "errors": [
                            {
                                "line": 4,
                                "reason": "phone: is not a phone number such as 79161234567",
                            }
                        ],
                    },
                ),
                **BODY_FAILURES,
                415: problem(
                    "The media type is neither `text/csv` nor `application/x-ndjson`, or the body"
                    " is compressed."
                ),
                **FAILURES,
                422: problem("The header of the CSV is not valid. Nothing was imported."),
                503: problem(
                    "Unavailable: the broker, the database or mailings is unreachable. Nothing was"
                    " imported.",
                    {"Retry-After": "Seconds to wait before the next request."},
                ),
                504: problem(
                    "The import was interrupted. `detail` says how many lines were imported."
                    " Repeat the whole import."
                ),
            },
        ),
    )


def _filter(name: str, description: str, pattern: str, example: str) -> Parameter:
    schema = {"type": "string", "minLength": 1, "maxLength": 100, "pattern": pattern}
    return Parameter(name, "query", description, schema, example=example)


async def create_client(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Create a client; respond after it is committed."""
    client, _ = await json_body(request, deps.settings.max_body_bytes)
    created = await deps.services.request(CREATE_CLIENT, b'{"client":%b}' % client, context)
    request[RECIPIENT_ID] = created["id"]
    location = {"Location": f"/v1/clients/{created['id']}"}
    return json_response(created, HTTPStatus.CREATED, location | etag(created))


async def get_client(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Return a client."""
    return await found(request, context, deps, GET_CLIENT, {"id": _id_in(request)})


async def change_client(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Change a client; respond after the change is committed."""
    return await changed(request, context, deps, CHANGE_CLIENT, _id_in(request), "change")


async def delete_client(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Delete a client."""
    body = to_json({"id": _id_in(request)} | if_match(request))
    await deps.services.request(DELETE_CLIENT, body, context)
    return web.Response(status=HTTPStatus.NO_CONTENT)


def _id_in(request: web.Request) -> str:
    return id_in_path(request, RECIPIENT_ID, "client")
