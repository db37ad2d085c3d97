"""What the journal gets of an attempt: the beginning of the response, and the request. Encrypted.

Facts are read by every observer of the exchange `outcomes`, so they contain neither in clear.
"""

from __future__ import annotations

import re
from base64 import b64encode
from typing import TYPE_CHECKING, Final, Literal

from shared.amqp.message import Message
from shared.contracts.kept_requests import MAX_REQUEST_BYTES, pack
from shared.http.client import HttpResponse

if TYPE_CHECKING:
    from shared.security.encryption import SecretCipher

# Characters of a response's body that the journal gets.
MAX_EXCERPT: Final = 1000
# Bytes that surely hold as many characters, with a byte order mark.
EXCERPT_BYTES: Final = 4 * MAX_EXCERPT + 96

_CHARSET: Final = re.compile(r"charset=\"?([A-Za-z0-9._-]{1,30})", re.IGNORECASE)
# The encodings of the web. Others are read as UTF-8: Python looks an unknown name up in its modules
# and remembers it for good, and receivers choose the names.
_ENCODINGS: Final = frozenset(
    (
        *("utf-8", "utf8", "utf-16", "utf-16le", "utf-16be", "us-ascii", "latin1", "macintosh"),
        *("koi8-r", "koi8-u", "big5", "gb2312", "gbk", "gb18030", "shift_jis", "euc-jp"),
        *("iso-2022-jp", "euc-kr"),
        *(f"iso-8859-{part}" for part in (*range(1, 12), *range(13, 17))),
        *(f"windows-125{part}" for part in range(9)),
    )
)

Bodies = Literal["none", "failed", "all"]


class Keeper:
    """Encrypts what the journal keeps. Without a cipher it keeps nothing.

    `bodies` says whose requests are kept: none, those of failed attempts, or all.
    """

    def __init__(self, cipher: SecretCipher | None, bodies: Bodies) -> None:
        self._cipher = cipher
        self._kept = {"none": (), "failed": (False,), "all": (False, True)}[bodies]

    def response(self, response: HttpResponse | None) -> str | None:
        """Return the beginning of a body, encrypted, in base64; None without one."""
        if self._cipher is None or response is None or not response.body:
            return None
        text = excerpt(response.body, response.content_type)
        return self._sealed(self._cipher, text.encode())

    def request(self, message: Message, *, delivered: bool) -> str | None:
        """Return the request and its id, encrypted, in base64; None if it is not kept."""
        if (
            self._cipher is None
            or delivered not in self._kept
            or len(message.body) > MAX_REQUEST_BYTES
        ):
            return None
        return self._sealed(self._cipher, pack(message.id, message.body))

    @staticmethod
    def _sealed(cipher: SecretCipher, content: bytes) -> str:
        return b64encode(cipher.encrypt(content)).decode()


def excerpt(body: bytes, content_type: str | None) -> str:
    """Return the first characters of a body. What its encoding cannot represent is replaced."""
    encoding = "utf-8"
    if content_type is not None and (found := _CHARSET.search(content_type)) is not None:
        name = found[1].lower()
        encoding = name if name in _ENCODINGS else encoding
    return body.decode(encoding, "replace")[:MAX_EXCERPT]
