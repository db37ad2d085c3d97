"""The SMS gateway: takes messages from whoever shows a JWT signed with its key."""

import asyncio
import time
import warnings
from typing import Any

from aiohttp import web
from joserfc import jwt
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import OctKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.sandbox.inbox import Arrival, Inbox, arrival_json
from services.sandbox.misbehaviour import misbehave
from services.sandbox.orders import Delay, Refuse, SmsOrder
from services.sandbox.parsing import faults

ALGORITHM = "HS256"


class Sms(BaseModel):
    """The body of a request; numbers may be written as JSON numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)
    id: str = Field(min_length=1, max_length=255)
    phone: str = Field(pattern=r"^7[0-9]{10}$")
    text: str = Field(min_length=1, max_length=10_000)


class SmsGateway:
    """The HTTP handler around one inbox."""

    def __init__(self, inbox: Inbox[SmsOrder], key: str) -> None:
        self._inbox = inbox
        with warnings.catch_warnings():
            # Of a short key, which is the person's choice: it guards nothing.
            warnings.simplefilter("ignore", SecurityWarning)
            self._key = OctKey.import_key(key)

    def routes(self) -> list[web.RouteDef]:
        """Return the gateway's one route."""
        return [web.post("/sms/v1/send/{message_id}", self.send)]

    async def send(self, request: web.Request) -> web.StreamResponse:
        """Take a message, or say why not: 401 for the JWT, 400 for what was sent."""
        body = await request.read()
        message_id = request.match_info["message_id"]
        sender, unknown = self._caller(request.headers.get("Authorization", ""))
        sms, wrong = _read(body, message_id)
        usual, answer = 200, {"code": 0, "message": "OK"}
        if unknown:
            usual, answer = 401, {"code": 401, "message": unknown}
        elif wrong:
            usual = 400
            answer = {"code": 400, "message": "the message is not valid", "errors": wrong}

        to = (sms.phone,) if sms else ()
        behaviour = self._inbox.meet(to)
        assert not isinstance(behaviour, Refuse)  # noqa: S101 - no SmsOrder has it
        if isinstance(behaviour, Delay):
            await asyncio.sleep(behaviour.seconds)
        status = usual if behaviour is None or isinstance(behaviour, Delay) else behaviour.status
        self._inbox.keep(
            time.time(),
            sender=sender,
            to=to,
            id=message_id,
            status=status,
            accepted=usual == 200 and (behaviour is None or isinstance(behaviour, Delay)),  # noqa: PLR2004
            behaviour=behaviour.kind if behaviour else None,
            fault=unknown or "; ".join(f"{f['field']}: {f['message']}" for f in wrong) or None,
            content=body,
        )
        if behaviour is not None and not isinstance(behaviour, Delay):
            return await misbehave(behaviour, request)
        headers = {"WWW-Authenticate": "Bearer"} if usual == 401 else None  # noqa: PLR2004
        return web.json_response(answer, status=usual, headers=headers)

    def _caller(self, authorization: str) -> tuple[str, str | None]:
        """Return who signed (`sub` or `iss`, if they are there), and what is wrong with the JWT."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            return "", "a bearer JWT is missing"
        try:
            claims = jwt.decode(token.strip(), self._key, algorithms=[ALGORITHM]).claims
            jwt.JWTClaimsRegistry().validate(claims)
        except (JoseError, ValueError, RecursionError) as error:
            return "", f"the JWT is not valid: {error}"
        return str(claims.get("sub") or claims.get("iss") or ""), None


def _read(body: bytes, message_id: str) -> tuple[Sms | None, list[dict[str, str]]]:
    try:
        sms = Sms.model_validate_json(body)
    except ValidationError as error:
        return None, faults(error.errors())
    if sms.id != message_id:
        return sms, [{"field": "id", "message": "is not the id in the path"}]
    return sms, []


def text(arrival: Arrival) -> str:
    """Return the text of a message, or what came instead of one."""
    try:
        return Sms.model_validate_json(arrival.content).text
    except ValidationError:
        return arrival.content.decode(errors="replace")


def sms_json(arrival: Arrival) -> dict[str, Any]:
    """Return a message as JSON."""
    return arrival_json(arrival) | {
        "phone": arrival.to[0] if arrival.to else None,
        "text": text(arrival),
        "from": arrival.sender,
    }
