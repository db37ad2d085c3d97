"""The SMS gateway: accepts messages with a JWT that is signed with its key."""

import asyncio
import time
import warnings
from collections.abc import Mapping
from typing import Any

from aiohttp import web
from joserfc import jwt
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import OctKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.sandbox.behaviours import (
    Behaviour,
    Close,
    Delay,
    Fail,
    Hang,
    Refuse,
    Respond,
    SmsSettings,
)
from services.sandbox.inbox import Inbox, ReceivedMessage, message_json
from services.sandbox.parsing import field_errors
from services.sandbox.responses import respond

ALGORITHM = "HS256"
# The behaviours that the page offers, by the label of their button.
BEHAVIOURS: Mapping[str, Behaviour | None] = {
    "work": None,
    "slow": Delay(kind="delay", seconds=3),
    "hang": Hang(kind="hang"),
    "close": Close(kind="close"),
    "refuse": Fail(kind="fail", status=503),
    "nonsense": Respond(kind="respond", body="<html>It works!", content_type="text/html"),
}


class Sms(BaseModel):
    """The body of a request; id and phone may also be JSON numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)
    id: str = Field(min_length=1, max_length=255)
    phone: str = Field(pattern=r"^7[0-9]{10}$")
    text: str = Field(min_length=1, max_length=10_000)


class SmsGateway:
    """The HTTP handler of the gateway."""

    def __init__(self, inbox: Inbox[SmsSettings], key: str) -> None:
        self._inbox = inbox
        with warnings.catch_warnings():
            # A short key is the user's choice: the sandbox protects nothing.
            warnings.simplefilter("ignore", SecurityWarning)
            self._key = OctKey.import_key(key)

    def routes(self) -> list[web.RouteDef]:
        """Return the only route."""
        return [web.post("/sms/v1/send/{message_id}", self.send)]

    async def send(self, request: web.Request) -> web.StreamResponse:
        """Accept a message, or respond 401 to a bad JWT and 400 to a bad message."""
        body = await request.read()
        message_id = request.match_info["message_id"]
        sender, denied = self._caller(request.headers.get("Authorization", ""))
        sms, wrong = _parse(body, message_id)
        usual, result = 200, {"code": 0, "message": "OK"}
        if denied:
            usual, result = 401, {"code": 401, "message": denied}
        elif wrong:
            usual = 400
            result = {"code": 400, "message": "the message is not valid", "errors": wrong}

        to = (sms.phone,) if sms else ()
        behaviour = self._inbox.next_behaviour(to)
        assert not isinstance(behaviour, Refuse)  # noqa: S101 - SmsSettings does not allow it
        if isinstance(behaviour, Delay):
            await asyncio.sleep(behaviour.seconds)
        status = usual if behaviour is None or isinstance(behaviour, Delay) else behaviour.status
        self._inbox.record(
            time.time(),
            sender=sender,
            to=to,
            id=message_id,
            status=status,
            accepted=usual == 200 and (behaviour is None or isinstance(behaviour, Delay)),  # noqa: PLR2004
            behaviour=behaviour.kind if behaviour else None,
            fault=denied or "; ".join(f"{f['field']}: {f['message']}" for f in wrong) or None,
            content=body,
        )
        if behaviour is not None and not isinstance(behaviour, Delay):
            return await respond(behaviour, request)
        headers = {"WWW-Authenticate": "Bearer"} if usual == 401 else None  # noqa: PLR2004
        return web.json_response(result, status=usual, headers=headers)

    def _caller(self, authorization: str) -> tuple[str, str | None]:
        """Return the signer (`sub` or `iss`, if present) and the fault of the JWT, if any."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            return "", "a bearer JWT is missing"
        try:
            claims = jwt.decode(token.strip(), self._key, algorithms=[ALGORITHM]).claims
            jwt.JWTClaimsRegistry().validate(claims)
        except (JoseError, ValueError, RecursionError) as error:
            return "", f"the JWT is not valid: {error}"
        return str(claims.get("sub") or claims.get("iss") or ""), None


def _parse(body: bytes, message_id: str) -> tuple[Sms | None, list[dict[str, str]]]:
    try:
        sms = Sms.model_validate_json(body)
    except ValidationError as error:
        return None, field_errors(error.errors())
    if sms.id != message_id:
        return sms, [{"field": "id", "message": "must be the id in the path"}]
    return sms, []


def text(message: ReceivedMessage) -> str:
    """Return the text of a message, or the raw body if it is not valid."""
    try:
        return Sms.model_validate_json(message.content).text
    except ValidationError:
        return message.content.decode(errors="replace")


def sms_json(message: ReceivedMessage) -> dict[str, Any]:
    """Return a message as JSON."""
    return message_json(message) | {
        "phone": message.to[0] if message.to else None,
        "text": text(message),
        "from": message.sender,
    }
