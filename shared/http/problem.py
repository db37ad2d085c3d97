"""HTTP errors as `application/problem+json` (RFC 9457)."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from shared.contracts.requests import FieldError
from shared.errors import RingbackError

PROBLEM_JSON: Final = "application/problem+json"
# A URN, not a URL: it refers to no page, and is the same on every server.
TYPE: Final = "urn:ringback:problem:"


class Problem(BaseModel):
    """The body of an error response."""

    model_config = ConfigDict(frozen=True)

    type: str = Field(
        description="The kind of problem; stable across versions.",
        examples=["urn:ringback:problem:invalid"],
    )
    title: str = Field(description="The status in words.", examples=["Unprocessable Content"])
    status: int = Field(description="The HTTP status.", examples=[422])
    detail: str = Field(description="A description for people.")
    errors: list[FieldError] = Field(
        default_factory=list, description="Every rejected field, if any."
    )
    result: Literal["not_found"] | None = Field(
        default=None, description="With the status 404: the result, as for other changes."
    )


class ProblemError(RingbackError):
    """An error that becomes the response to the request."""

    def __init__(  # noqa: PLR0913 - the members of a problem
        self,
        status: HTTPStatus,
        kind: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.errors = errors
        self.headers = headers
        self.members = members or {}

    def body(self) -> dict[str, Any]:
        """Return the body of the response; `members` are additional members of the problem."""
        content: dict[str, Any] = {
            "type": TYPE + self.kind,
            "title": self.status.phrase,
            "status": self.status.value,
            "detail": str(self),
        }
        if self.errors:
            content["errors"] = self.errors
        return content | dict(self.members)

    def response(self) -> web.Response:
        """Return the response."""
        return web.Response(
            status=self.status,
            body=to_json(self.body()),
            content_type=PROBLEM_JSON,
            headers=self.headers,
        )
