"""The operations of mailings on the client directory, with their requests and responses."""

from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from shared.contracts.clients import (
    Client,
    ClientChange,
    NewClient,
    OperatorCode,
    PhonePrefix,
    Tag,
    TimeZone,
)
from shared.contracts.requests import RpcOperation
from shared.contracts.schedules import ENVELOPE, IfMatch
from shared.topology import MAILINGS_REQUESTS

MAX_PAGE_SIZE: Final = 1000
DEFAULT_PAGE_SIZE: Final = 100
# Lines in one request: 30 ms of work for PostgreSQL, and 100 kB.
MAX_IMPORT_SIZE: Final = 1000

_RESPONSE: Final = ConfigDict(frozen=True, extra="forbid")


class CreateClient(BaseModel):
    """Operation: create a client."""

    model_config = ENVELOPE

    client: NewClient


class GetClient(BaseModel):
    """Operation: return a client."""

    model_config = ENVELOPE

    id: UUID


class ListClients(BaseModel):
    """Operation: list clients by id, a page at a time; with `phone` ordered by phone."""

    model_config = ENVELOPE

    phone: PhonePrefix | None = Field(default=None, description="The phone, or its beginning.")
    operator_code: OperatorCode | None = None
    tag: Tag | None = None
    timezone: TimeZone | None = None
    cursor: Annotated[str, Field(max_length=255)] | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE_SIZE)] = DEFAULT_PAGE_SIZE


class ChangeClient(BaseModel):
    """Operation: change a client."""

    model_config = ENVELOPE

    id: UUID
    change: ClientChange
    if_match: IfMatch = None


class DeleteClient(BaseModel):
    """Operation: delete a client."""

    model_config = ENVELOPE

    id: UUID
    if_match: IfMatch = None


class ImportLine(BaseModel):
    """One line of an import. `client` is a NewClient, and is validated on its own."""

    model_config = ENVELOPE

    line: PositiveInt
    client: Any


class ImportClients(BaseModel):
    """Operation: create the clients of these lines, or replace those with the same phone."""

    model_config = ENVELOPE

    lines: Annotated[list[ImportLine], Field(max_length=MAX_IMPORT_SIZE)]


class ClientPage(BaseModel):
    """A page of clients. `next_cursor` is null on the last page."""

    model_config = _RESPONSE

    items: list[Client]
    next_cursor: str | None


class ClientDeleted(BaseModel):
    """The client is deleted."""

    model_config = _RESPONSE

    id: UUID


class RejectedLine(BaseModel):
    """A line that was not imported."""

    model_config = _RESPONSE

    line: PositiveInt = Field(description="Number of the line, from 1.")
    reason: str


class ClientsImported(BaseModel):
    """The result of an import. Lines of the same phone count as one creation and updates."""

    model_config = _RESPONSE

    created: NonNegativeInt
    updated: NonNegativeInt = Field(description="Lines of known clients, also unchanged ones.")
    failed: NonNegativeInt = Field(description="Number of all lines that were not imported.")
    errors: list[RejectedLine] = Field(description="Up to 1,000 of these lines.")


CREATE_CLIENT: Final = RpcOperation(MAILINGS_REQUESTS, "CreateClient", CreateClient, (Client,))
GET_CLIENT: Final = RpcOperation(MAILINGS_REQUESTS, "GetClient", GetClient, (Client,))
LIST_CLIENTS: Final = RpcOperation(MAILINGS_REQUESTS, "ListClients", ListClients, (ClientPage,))
CHANGE_CLIENT: Final = RpcOperation(MAILINGS_REQUESTS, "ChangeClient", ChangeClient, (Client,))
DELETE_CLIENT: Final = RpcOperation(
    MAILINGS_REQUESTS, "DeleteClient", DeleteClient, (ClientDeleted,)
)
IMPORT_CLIENTS: Final = RpcOperation(
    MAILINGS_REQUESTS, "ImportClients", ImportClients, (ClientsImported,)
)

CLIENT_OPERATIONS: Final = (
    CREATE_CLIENT,
    GET_CLIENT,
    LIST_CLIENTS,
    CHANGE_CLIENT,
    DELETE_CLIENT,
    IMPORT_CLIENTS,
)
