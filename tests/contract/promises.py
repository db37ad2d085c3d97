"""The promises of Ringback by number, and the tests that carry a number in name or comment."""

import ast
import re
from pathlib import Path
from typing import Final

FOLDERS: Final = ("acceptance", "integration", "contract", "unit")
PROMISES: Final = {
    "S1": "A callback is scheduled with a time and a URL; everything else is optional.",
    "S2": "Callbacks are grouped and listed by `group_key`.",
    "S3": "`event_key` is unique in its group. A used key is rejected with 409.",
    "S4": "`context` is any JSON, or a string that contains JSON, and is returned unchanged.",
    "S5": "Quick and main retries follow `retry_params`. Invalid ones are rejected with 422.",
    "S6": "`notify_scheme` selects transport (http, amqp) and format.",
    "S7": "The status of a callback comes with attempts, last error and next time.",
    "S8": "A callback is cancelled and rescheduled by id, keys or group, in every phase.",
    "S9": "Service tickets identify clients. Clients are isolated from each other.",
    "S10": "OpenAPI describes the HTTP API, and Swagger UI works without internet access.",
    "S11": "An accepted callback fires at least once, never early, always under the same id.",
    "H1": "SendCallback messages are sent as HTTP requests in the documented format.",
    "H2": "Requests are signed with HMAC-SHA256, by every configured secret.",
    "H3": "Failed attempts are retried through tiers; exhausted ones are dead-lettered.",
    "H4": "Prometheus metrics have their fixed names and bounded labels.",
    "H5": "Logs are one JSON object per line, without secrets.",
    "H6": "Consumer and metrics server run alone or together.",
    "H7": "Settings come from environment and file. All errors are reported at once.",
    "E1": "Producers publish events over AMQP and HTTP. New events need configuration only.",
    "E2": "Rules turn events into commands.",
    "E3": "A duplicate event has no effect. A stale event is counted and has no effect.",
    "E4": "Users get a message only if the channel is enabled and the kind is not disabled.",
    "E5": "A posting renders a template for every user of a list.",
    "E6": "E-mails and SMS are sent by their channel, and never after their expiry.",
    "E7": "A posting survives a restart: no recipient is skipped, and ids stay the same.",
    "M1": "Clients are created, imported, searched, changed and deleted. Callers are isolated.",
    "M2": "A mailing is created, changed and deleted, as far as its status allows.",
    "M3": "Each message of a mailing has an id, times, a status and its recipient.",
    "M4": "A mailing starts at once inside its window, and by itself at a later start time.",
    "M5": "Clients get messages only in their local hours, also when the clock changes.",
    "M6": "Messages are counted by status, hour, operator code and reason; counts equal rows.",
    "M7": "A slow, broken or refusing SMS gateway disrupts nothing else.",
    "M8": "The sandbox simulates the SMS gateway with JWT authentication.",
    "M9": "Swagger UI at `/docs/` describes the API of clients and mailings.",
    "M10": "Mailings and clients are managed in the console, with statistics of the messages sent.",
    "M11": "Users of the console sign in with OpenID Connect, and each page requires its role.",
    "M12": "The statistics of mailings are sent by e-mail once a day, through Ringback itself.",
    "M13": "Metrics are exported for Prometheus. The docs list every metric and every endpoint.",
    "M14": "Log lines carry the ids of mailing, message and recipient, and a command follows them.",
    "M15": "One command starts everything with Docker Compose. Kubernetes manifests are valid.",
    "M16": "CI runs one script, which runs the checks and the tests, and publishes nothing.",
    "U1": "A user registers the server that receives their events.",
    "U2": "Events arrive there as `type` and `event`, signed.",
    "U3": "When the URL changes, the old and the new server get `callback_deprecated`.",
    "U4": "A poll ends as soon as an event happens, and costs nothing while it waits.",
    "U5": "The messenger responds with its codes, to JSON and to forms.",
    "U6": "An event between two polls, or during a lost connection, is not lost.",
    "N1": "An endpoint has filters, headers, a secret with rotation and a rate, per client.",
    "N2": "A message reaches all matching endpoints with one id. Its attempts can be listed.",
    "N3": "Tests, and replays at a bounded rate: each message once, also after a crash.",
    "N4": "An endpoint that fails too long is disabled and reported. A pause loses no message.",
    "N5": "Ordered deliveries wait for the one before. Streams and polls share cursors.",
    "N6": "Each fact is stored once, also after a crash. Clients read and search only their own.",
    "N7": "Replay, redrive and discard by filter: bounded, exact after a crash, and audited.",
    "N8": "Targets show their health. Operators pause and resume them.",
    "N9": "Urgent messages are sent before bulk ones; processes share a provider's limits.",
    "N10": "A backlog of one client delays the callbacks of another by two claims at most.",
    "N11": "A node of the broker or PostgreSQL's primary dies: nothing is lost, and work resumes.",
    "N12": "Two versions run side by side during an upgrade: nothing is lost or dead-lettered.",
    "N14": "Alerts fire, end and have runbooks. Panels read what exists. A trace reaches attempts.",
    "N15": "A simulation predicts attempts, delays and dead letters of a real run.",
    "row 1": "The broker is killed: nothing is lost, and services recover.",
    "row 2": "The broker is suspended: publishes end as unknown within 5 s.",
    "row 3": "The broker restarts gracefully: nothing is lost.",
    "row 4": "A node is isolated for 80 s: the majority continues, and nothing is lost.",
    "row 5": "A queue's leader is killed: nothing is lost, and work continues within 10 s.",
    "row 6": "Memory alarm: 503 within 5 s, and work continues afterwards.",
    "row 7": "Disk alarm: the same as a memory alarm.",
    "row 8": "A deleted queue is declared again, and its consumer recovers.",
    "row 9": "A removed binding is declared again.",
    "row 10": "A dead-letter target returns after 60 s: all messages arrive within 10 s of that, "
    "if the broker repeats dead-lettering after 5 s (operations.md).",
    "row 11": "A full tier delays retries and loses nothing.",
    "row 12": "A handler slower than the consumer timeout causes one redelivery.",
    "row 13": "A poison message is dead-lettered after a limit, without affecting others.",
    "row 14": "A queue with other arguments stops the start with an error that names it.",
    "row 15": "Headers and bodies that are too large are rejected and never forwarded.",
    "row 16": "The scheduler dies between confirm and settlement: one repeat, same id.",
    "row 17": "The scheduler dies between claim and publish: the callback fires within 30 s.",
    "row 18": "A process suspended beyond its lease settles nothing.",
    "row 19": "PostgreSQL restarts: nothing is lost.",
    "row 20": "A suspended database backend is replaced, and the pool recovers.",
    "row 22": "An idle transaction does not slow down claims.",
    "row 23": "Two schedulers never claim the same callback.",
    "row 24": "The database's clock decides. A skipped local time fires once that day.",
    "row 25": "The database's disk is full: no write is reported as stored.",
    "row 26": "NUL, surrogates, NaN, huge numbers and deep nesting are rejected at once.",
    "row 27": "No packet is sent to a forbidden address.",
    "row 28": "Hostile receivers are bounded in time and memory.",
    "row 29": "Dead targets do not affect healthy ones.",
    "row 30": "`Retry-After`, 410, redirects and TLS errors are handled as documented.",
    "row 31": "Secrets rotate under load, and appear in no log, error or fact.",
    "row 32": "SIGTERM drains within the grace period. The rest is requeued without an attempt.",
    "row 33": "Bad tickets, foreign ids and absurd page sizes get 401, 404 or 422.",
    "row 34": "A client that does not read costs bounded memory, and its events are kept.",
}

_IN_NAME: Final = re.compile(
    r"(?<=_)(?:([shemnu])(\d{1,2})(?:_to_\1(\d+))?|(rows?)_(\d+)(?:_(?:and_)?(\d+))?)(?=_)"
)
_IN_COMMENT: Final = re.compile(
    r"\b(?:([SHEMNU])(\d{1,2})|[Rr]ows? (\d+)(?:(?:,| and| to) (\d+))?)\b"
)


def promised_tests(root: Path) -> dict[str, list[str]]:
    """Return the tests of each number, as `file::name`; those that run whole processes first."""
    found: dict[str, list[str]] = {}
    for folder in FOLDERS:
        for file in sorted((root / "tests" / folder).rglob("test_*.py")):
            text = file.read_text()
            for name, comments in _tests(text):
                for number in sorted(_numbers(name, comments)):
                    test = f"{file.relative_to(root)}::{name}"
                    found.setdefault(number, []).append(test)
    return found


def _tests(text: str) -> list[tuple[str, str]]:
    """Return each test's name, with the comments above and in it."""
    lines = text.splitlines()
    tests = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if not node.name.startswith("test_"):
            continue
        first = min([node.lineno, *(each.lineno for each in node.decorator_list)]) - 1
        while first > 0 and lines[first - 1].startswith("#"):
            first -= 1
        body = lines[first : node.end_lineno]
        tests.append((node.name, "\n".join(line.partition("#")[2] for line in body)))
    return tests


def _numbers(name: str, comments: str) -> set[str]:
    numbers = set()
    for letter, start, end, row, one, two in _IN_NAME.findall(name.removeprefix("test")):
        if row:
            # `row_15_200_kb` is row 15; only `rows_…` and `…_and_…` name two.
            both = two and (row == "rows" or f"{one}_and_{two}" in name)
            numbers |= {f"row {one}", *([f"row {two}"] if both else [])}
        else:
            numbers |= {f"{letter.upper()}{n}" for n in range(int(start), int(end or start) + 1)}
    for letter, number, one, two in _IN_COMMENT.findall(comments):
        numbers |= {f"{letter}{number}"} if letter else {f"row {n}" for n in (one, two) if n}
    return numbers
