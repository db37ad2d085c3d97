"""The key of a reason, so that letters with the same cause form one group. Pure, no IO."""

import re
from typing import Final

# Characters of a reason in the index. Ringback's own have at most as many.
MAX_REASON: Final = 1000
# Characters of a key.
MAX_KEY: Final = 200

# Clients write reasons, so no pattern may backtrack: each takes linear time.
_SPACES: Final = re.compile(r"\s+")
_URL: Final = re.compile(
    r"[a-z][a-z0-9+.-]{0,30}://[^\s'\"]+?(?=[:;,.]?(?:\s|['\"]|$))", re.IGNORECASE
)
_QUOTED: Final = re.compile(r"(?<!\w)(?:'[^']*'|\"[^\"]*\")(?!\w)")
_ID: Final = re.compile(r"\b[0-9a-f]{8,}(?:-[0-9a-f]{4,})*\b", re.IGNORECASE)
# The status of a response is the cause itself.
_NUMBER: Final = re.compile(r"(?<!\bstatus )(?<!\bresponded with )\b\d+(?:[.,:]\d+)*")
_ATTEMPTS: Final = re.compile(r"# attempts?\b")


def plain(reason: str) -> str:
    """Return a reason as the index stores it: PostgreSQL cannot store NUL."""
    return reason[:MAX_REASON].replace("\0", "\N{REPLACEMENT CHARACTER}")


def reason_key(reason: str) -> str:
    """Return a reason without its numbers, ids, quotations and URLs.

    A status stays: `gave up after 5 attempts: the receiver responded with 503` becomes `gave up
    after # attempts: the receiver responded with 503`.
    """
    text = _SPACES.sub(" ", plain(reason)).strip()
    text = _URL.sub("URL", text)
    text = _QUOTED.sub("'…'", text)
    text = _ID.sub(_without_id, text)
    text = _NUMBER.sub("#", text)
    return _ATTEMPTS.sub("# attempts", text)[:MAX_KEY]


def _without_id(found: re.Match[str]) -> str:
    """Return `#` for an id. Without a digit it is a word."""
    return "#" if any(map(str.isdigit, found[0])) else found[0]
