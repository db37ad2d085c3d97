"""The request handlers: pause and resume of targets, by operators."""

from collections.abc import Mapping

from services.journal.audit.store import Audit
from services.journal.pauses.announcing import Announcer
from services.journal.pauses.store import PausedTargetStore, TooManyPausedError
from services.journal.scope import for_operators
from shared.amqp.rpc import RequestContext
from shared.amqp.rpc_binding import Handler, Response, bound
from shared.contracts.journal_replays import (
    PAUSE_TARGET,
    RESUME_TARGET,
    ControlTarget,
    TargetControlled,
)
from shared.contracts.requests import Failure, FailureCode, FieldError, invalid
from shared.http.guard import ForbiddenTargetError, parse_target


class PauseRequests:
    """Pauses and resumes targets. A repeat changes nothing."""

    def __init__(self, store: PausedTargetStore, announcer: Announcer, audit: Audit) -> None:
        self._store = store
        self._announcer = announcer
        self._audit = audit

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handler of each operation, by its name."""
        return dict(
            (
                bound(PAUSE_TARGET, for_operators(self._pause)),
                bound(RESUME_TARGET, for_operators(self._resume)),
            )
        )

    async def _pause(self, context: RequestContext, command: ControlTarget) -> Response:
        return await self._control(context, command, paused=True)

    async def _resume(self, context: RequestContext, command: ControlTarget) -> Response:
        return await self._control(context, command, paused=False)

    async def _control(
        self, context: RequestContext, command: ControlTarget, *, paused: bool
    ) -> Response:
        try:
            target = origin(command.target)
            if paused:
                await self._store.pause(target, context.actor)
            else:
                await self._store.resume(target)
        except (ValueError, ForbiddenTargetError) as error:
            return invalid([FieldError(field="target", message=str(error))])
        except TooManyPausedError as error:
            return Failure(code=FailureCode.CONFLICT, detail=str(error))
        await self._announcer.announce()
        action = "pause_target" if paused else "resume_target"
        await self._audit.record(context, action, object_=target)
        return TargetControlled(target=target, paused=paused)


def origin(target: str) -> str:
    """Return scheme, host and port of a target, as in facts: the port is always there.

    Raises:
        ForbiddenTargetError: it is not the beginning of a valid URL.
        ValueError: it has a path or a query.
    """
    parsed = parse_target(target)
    if parsed.url.raw_path_qs not in ("", "/"):
        raise ValueError("must be scheme, host and port, without a path")
    return parsed.origin
