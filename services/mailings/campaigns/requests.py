"""The handlers of requests about mailings. Each caller sees only its own mailings."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from json import dumps
from math import ceil
from typing import Final, TypeVar
from uuid import UUID, uuid5

from pydantic import ValidationError

from services.mailings.campaigns import domain
from services.mailings.campaigns.cohorts import TimeZones, with_time_zones
from services.mailings.campaigns.domain import Action, Effect
from services.mailings.campaigns.records import NewRow, StoredMailing
from services.mailings.campaigns.store import (
    ActionRefusedError,
    Campaigns,
    MailingOverError,
    StopUnconfirmedError,
)
from services.mailings.campaigns.texts import InvalidTextError, Texts
from services.mailings.campaigns.worker import CampaignWorker, log
from services.mailings.clients.domain import operator_code_of
from services.mailings.clients.store import Directory
from services.mailings.domain import message_id
from services.mailings.messages import outgoing
from shared.amqp.publisher import Publisher, new_id
from shared.amqp.rpc import RequestContext
from shared.amqp.rpc_binding import Handler, Response, bound
from shared.clock import Clock
from shared.contracts.context import field_errors
from shared.contracts.mailing_requests import (
    CANCEL_MAILING,
    CHANGE_MAILING,
    COUNT_AUDIENCE,
    CREATE_MAILING,
    DELETE_MAILING,
    GET_MAILING,
    LIST_MAILING_MESSAGES,
    LIST_MAILINGS,
    PAUSE_MAILING,
    PREVIEW_MAILING,
    RESUME_MAILING,
    START_MAILING,
    TEST_MAILING,
    Audience,
    ChangeMailing,
    ControlMailing,
    CreateMailing,
    DeleteMailing,
    GetMailing,
    ListMailingMessages,
    ListMailings,
    MailingDeleted,
    MailingMessages,
    MailingPreview,
    Mailings,
    PreviewMailing,
    TestMailing,
    TestSent,
)
from shared.contracts.mailings import AudienceFilter, MailingChanges, MailingContent, MailingStatus
from shared.contracts.posting_requests import MessageState
from shared.contracts.requests import Failure, FailureCode, FieldError, RpcOperation, invalid
from shared.errors import InfrastructureError
from shared.pagination import END, decode_cursor, encode_cursor

# Changes of mailings that use a database connection at a time. Each takes a few milliseconds.
MAX_CHANGES: Final = 3
# Lists, counts of an audience and readings of time zones that do. They may take a second, and a
# stop must not wait for them.
MAX_READS: Final = 2
NOT_FOUND: Final = Failure(code=FailureCode.NOT_FOUND, detail="the mailing does not exist")
NO_CLIENT: Final = Failure(
    code=FailureCode.NOT_FOUND, detail="no client has this phone, or the filter matches none"
)
CONFLICT: Final = Failure(
    code=FailureCode.CONFLICT,
    detail="a different mailing was created with this idempotency key",
)
CHANGED: Final = Failure(
    code=FailureCode.PRECONDITION_FAILED, detail="the mailing has changed since its etag was read"
)
TOO_MANY_TESTS: Final = Failure(
    code=FailureCode.TOO_MANY_REQUESTS,
    detail="the mailing has been tested too often; ten tests a minute are permitted",
)
OVER: Final = invalid([FieldError(field="end_at", message="must be in the future")])
INVALID_CURSOR: Final = invalid([FieldError(field="cursor", message="is not a valid cursor")])
_FIRST: Final = UUID(int=0), UUID(int=0)
T = TypeVar("T")


class _PreconditionFailedError(Exception):
    """The mailing is not in the state that the caller has read."""


class _InvalidChangeError(Exception):
    """The change is not possible. The errors name the fields."""

    def __init__(self, errors: Sequence[FieldError]) -> None:
        super().__init__()
        self.errors = errors


class CampaignRequests:
    """Handles requests about mailings. `started` is called after a mailing has started."""

    def __init__(  # noqa: PLR0913 - the composition root names each
        self,
        campaigns: Campaigns,
        directory: Directory,
        worker: CampaignWorker,
        texts: Texts,
        publisher: Publisher,
        *,
        clock: Clock,
        started: Callable[[], None],
    ) -> None:
        self._started = started
        self._campaigns = campaigns
        self._directory = directory
        self._worker = worker
        self._texts = texts
        self._publisher = publisher
        self._clock = clock
        self._changes = asyncio.Semaphore(MAX_CHANGES)
        self._reads = asyncio.Semaphore(MAX_READS)

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handler of each operation, by its name."""
        return dict(
            (
                bound(CREATE_MAILING, self._create, within="mailing"),
                bound(GET_MAILING, self._get),
                bound(LIST_MAILINGS, self._list),
                bound(CHANGE_MAILING, self._change, within="changes"),
                self._control(START_MAILING, Action.START),
                self._control(PAUSE_MAILING, Action.PAUSE),
                self._control(RESUME_MAILING, Action.RESUME),
                self._control(CANCEL_MAILING, Action.CANCEL),
                bound(DELETE_MAILING, self._delete),
                bound(TEST_MAILING, self._test, within="test"),
                bound(PREVIEW_MAILING, self._preview, within="content"),
                bound(COUNT_AUDIENCE, self._audience),
                bound(LIST_MAILING_MESSAGES, self._messages),
            )
        )

    async def _create(self, context: RequestContext, command: CreateMailing) -> Response:
        new, key = command.mailing, command.idempotency_key
        content = MailingContent.model_validate(new.model_dump(exclude={"draft"}))
        try:
            self._texts.check(content)
        except InvalidTextError as error:
            return invalid([error.field_error])
        id_ = (
            domain.mailing_id_of_request(context.client_id, context.message_id or new_id())
            if key is None
            else domain.mailing_id_of_key(context.client_id, key)
        )
        fields = new.model_dump(mode="json", exclude_unset=True)
        fingerprint = sha256(dumps(fields, sort_keys=True).encode()).digest()
        row = NewRow(id_, _owner(context), fingerprint, context.traceparent, content)
        try:
            created = await self._with_time_zones(
                partial(self._campaigns.create, row, draft=new.draft)
            )
        except MailingOverError:
            return OVER
        if created is None:
            return CONFLICT
        log("created", created)
        return self._begun(created)

    async def _with_time_zones(self, change: Callable[[TimeZones | None], Awaitable[T]]) -> T:
        """Return what `change` returns, which may start a mailing."""
        return await with_time_zones(
            change, self._campaigns.time_zones, changes=self._changes, reads=self._reads
        )

    def _begun(self, mailing: StoredMailing) -> Response:
        """Return a mailing as the response. Others work on it if it is scheduled or running."""
        if mailing.status is MailingStatus.SCHEDULED:
            self._worker.wake()
        elif mailing.status is MailingStatus.RUNNING:
            self._started()
        return mailing.response()

    async def _get(self, context: RequestContext, command: GetMailing) -> Response:
        async with self._reads:
            mailing = await self._campaigns.find(_owner(context), command.id)
        return NOT_FOUND if mailing is None else mailing.response()

    async def _list(self, context: RequestContext, command: ListMailings) -> Response:
        try:
            before = END if command.cursor is None else decode_cursor(command.cursor)
        except ValueError:
            return INVALID_CURSOR
        async with self._reads:
            items, more = await self._campaigns.page(
                _owner(context), command.status, before, command.limit
            )
        return Mailings(
            items=[mailing.response() for mailing in items],
            next_cursor=encode_cursor((items[-1].created_at, items[-1].id)) if more else None,
        )

    async def _change(self, context: RequestContext, command: ChangeMailing) -> Response:
        def change(mailing: StoredMailing, effect: Effect) -> MailingContent:
            content = self._changed(mailing.content, command.changes)
            # A request that is delivered again finds its change made, and a new entity tag.
            if content != mailing.content and not _matches(mailing, command.if_match):
                raise _PreconditionFailedError
            if effect is Effect.CHANGE_LIMITS:
                _check_limits(mailing, content)
            return content

        try:
            changed = await self._with_time_zones(
                partial(self._campaigns.change, _owner(context), command.id, change)
            )
        except _InvalidChangeError as error:
            return invalid(error.errors)
        except _PreconditionFailedError:
            return CHANGED
        except ActionRefusedError as error:
            return _refused(Action.CHANGE, error.status)
        except MailingOverError:
            return OVER
        if changed is None:
            return NOT_FOUND
        log("changed", changed)
        return await self._confirmed(changed)

    def _changed(self, content: MailingContent, changes: MailingChanges) -> MailingContent:
        """Return the content after changes.

        Raises:
            _InvalidChangeError: it would not be valid.
        """
        try:
            changed = domain.merge(content, changes)
            self._texts.check(changed)
        except ValidationError as error:
            raise _InvalidChangeError(field_errors(error)) from None
        except InvalidTextError as error:
            raise _InvalidChangeError([error.field_error]) from None
        return changed

    def _control(
        self, operation: RpcOperation[ControlMailing], action: Action
    ) -> tuple[str, Handler]:
        async def respond(context: RequestContext, command: ControlMailing) -> Response:
            return await self._act(context, command, action, self._confirmed)

        return bound(operation, respond)

    async def _delete(self, context: RequestContext, command: DeleteMailing) -> Response:
        async def deleted(mailing: StoredMailing) -> Response:
            return MailingDeleted(id=mailing.id)

        try:
            return await self._act(context, command, Action.DELETE, deleted)
        except StopUnconfirmedError as error:
            response = await self._confirmed(error.mailing)
            if isinstance(response, Failure):
                return response
            return await self._delete(context, command)

    async def _act(
        self,
        context: RequestContext,
        command: ControlMailing | DeleteMailing,
        action: Action,
        respond: Callable[[StoredMailing], Awaitable[Response]],
    ) -> Response:
        def check(mailing: StoredMailing) -> None:
            if not _matches(mailing, command.if_match):
                raise _PreconditionFailedError

        try:
            mailing = await self._with_time_zones(
                partial(self._campaigns.act, _owner(context), command.id, action, check)
            )
        except _PreconditionFailedError:
            return CHANGED
        except ActionRefusedError as error:
            return _refused(action, error.status)
        except MailingOverError:
            return _over(action)
        if mailing is None:
            return NOT_FOUND
        log(_EVENTS[action], mailing)
        return await respond(mailing)

    async def _confirmed(self, mailing: StoredMailing) -> Response:
        """Return a mailing after delivery has confirmed that it stops, or continues."""
        try:
            await self._worker.confirm_stop(mailing)
        except InfrastructureError as error:
            self._worker.wake()
            return Failure(
                code=FailureCode.UNKNOWN,
                detail=f"the mailing is {mailing.status}, but delivery has not confirmed it:"
                f" {error}. Ringback repeats the request to delivery until it does",
            )
        if mailing.closing:
            self._worker.wake()
        return self._begun(mailing)

    async def _test(self, context: RequestContext, command: TestMailing) -> Response:
        owner, phone = _owner(context), command.test.phone
        async with self._reads:
            permitted = await self._campaigns.permit_test(owner, command.id)
            client = await self._directory.find_by_phone(owner, phone)
        if permitted is None:
            return NOT_FOUND
        mailing, wait = permitted
        if wait > 0:
            return TOO_MANY_TESTS.model_copy(update={"retry_after": ceil(wait)})
        test_id = uuid5(command.id, context.message_id or new_id())
        user = {
            "id": str(test_id),
            "phone": phone,
            "operator_code": operator_code_of(phone),
            "tag": None,
            "timezone": "UTC",
        }
        try:
            message = self._texts.test_message(
                mailing.content, test_id, user if client is None else client.user
            )
        except InvalidTextError as error:
            return invalid([error.field_error])
        await self._publisher.publish(outgoing(message, context.traceparent, self._clock.now()))
        return TestSent(message_id=test_id)

    async def _preview(self, context: RequestContext, command: PreviewMailing) -> Response:
        owner, filter_ = _owner(context), command.content.filter
        async with self._reads:
            if command.phone is not None:
                client = await self._directory.find_by_phone(owner, command.phone)
            else:
                found = await self._directory.page(
                    *(owner, UUID(int=0), 1),
                    operator_codes=filter_.operator_codes,
                    tags=filter_.tags,
                )
                client = found[0] if found else None
        if client is None:
            return NO_CLIENT
        try:
            text = self._texts.preview(command.content, client.user)
        except InvalidTextError as error:
            return invalid([error.field_error])
        return MailingPreview(client=client.response(), text=text)

    async def _audience(self, context: RequestContext, command: AudienceFilter) -> Response:
        async with self._reads:
            count = await self._campaigns.audience(_owner(context), command.filter)
        return Audience(clients=count)

    async def _messages(self, context: RequestContext, command: ListMailingMessages) -> Response:
        after = _FIRST
        if command.cursor is not None:
            try:
                posting, _, message = command.cursor.partition("/")
                after = UUID(posting), UUID(message)
            except ValueError:
                return INVALID_CURSOR
        async with self._reads:
            mailing = await self._campaigns.find(_owner(context), command.id)
            if mailing is None:
                return NOT_FOUND
            if command.client_id is not None:
                return await self._message(mailing, command.client_id, command.status)
            found = await self._campaigns.messages(
                command.id, after, command.status, command.limit + 1
            )
        page = found[: command.limit]
        cursor = f"{page[-1][0]}/{page[-1][1].id}" if len(found) > command.limit else None
        return MailingMessages(items=[message for _, message in page], next_cursor=cursor)

    async def _message(
        self, mailing: StoredMailing, client: UUID, status: MessageState | None
    ) -> MailingMessages:
        """Return the page with the message to a client, if there is one."""
        id_ = message_id(mailing.id, mailing.content.channel, str(client))
        found = await self._campaigns.message(mailing.id, id_)
        items = [] if found is None or status not in (None, found.status) else [found]
        return MailingMessages(items=items, next_cursor=None)


_EVENTS: Final = {
    Action.START: "released",
    Action.PAUSE: "paused",
    Action.RESUME: "resumed",
    Action.CANCEL: "cancelled",
    Action.DELETE: "deleted",
}


def _owner(context: RequestContext) -> str:
    return context.client_id or ""


def _matches(mailing: StoredMailing, if_match: Sequence[str] | None) -> bool:
    return if_match is None or "*" in if_match or mailing.etag in if_match


def _check_limits(mailing: StoredMailing, content: MailingContent) -> None:
    message = f"cannot be changed: the mailing is {mailing.status}"
    refused = sorted(domain.changed_fields(mailing.content, content) - domain.LIMITS)
    if refused:
        raise _InvalidChangeError([FieldError(field=name, message=message) for name in refused])


def _refused(action: Action, status: MailingStatus) -> Failure:
    return Failure(code=FailureCode.CONFLICT, detail=f"cannot {action} a mailing that is {status}")


def _over(action: Action) -> Failure:
    return Failure(
        code=FailureCode.CONFLICT,
        detail=f"cannot {action} the mailing: its end time has passed; change end_at",
    )
