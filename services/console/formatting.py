"""Texts of times, durations and counts. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

UTC_ZONE: Final = ZoneInfo("UTC")
# Characters of a time zone, such as America/Argentina/ComodRivadavia.
_MAX_ZONE: Final = 64
DASH: Final = "\N{EN DASH}"
_SECOND: Final = 1.0
_MINUTE: Final = 60
_HOUR: Final = 3600
_DAY: Final = 86_400


@dataclass(frozen=True, slots=True)
class Moment:
    """A time for display.

    iso: for programs, in UTC. local: in the viewer's zone. utc: the same in UTC.
    """

    iso: str
    local: str
    utc: str

    @property
    def both(self) -> str:
        """Return the time in the viewer's zone and in UTC, once if they are the same."""
        return self.utc if self.local == self.utc else f"{self.local} ({self.utc})"


@lru_cache(maxsize=256)
def zone_of(name: str | None) -> ZoneInfo | None:
    """Return the time zone with an IANA name, or None if there is none."""
    if not name or len(name) > _MAX_ZONE:
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def parse_time(value: datetime | str | float) -> datetime:
    """Return a time that is given as RFC 3339 text or in seconds since 1970."""
    if isinstance(value, datetime):
        return value
    if isinstance(value, str):
        return datetime.fromisoformat(value)
    return datetime.fromtimestamp(value, UTC)


def moment(value: datetime | str | float, zone: ZoneInfo) -> Moment:
    """Return a time for display in a zone. Milliseconds are shown unless they are zero."""
    at = parse_time(value)
    utc = at.astimezone(UTC)
    local = at.astimezone(zone)
    name = "UTC" if zone.key == UTC_ZONE.key else local.tzname() or zone.key
    return Moment(
        utc.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        f"{_clock(local)} {name}",
        f"{_clock(utc)} UTC",
    )


def _clock(at: datetime) -> str:
    text = at.strftime("%Y-%m-%d %H:%M:%S")
    milliseconds = at.microsecond // 1000
    return f"{text}.{milliseconds:03d}" if milliseconds else text


def ago(value: datetime | str | float, now: datetime) -> str:
    """Return how long ago a time was, or how far ahead it is: `5 min ago`, `in 2 h`."""
    seconds = (now - parse_time(value)).total_seconds()
    if abs(seconds) < _SECOND:
        return "now"
    text = _rough(abs(seconds))
    return f"{text} ago" if seconds > 0 else f"in {text}"


def _rough(seconds: float) -> str:
    for size, unit in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"


def duration(seconds: float | timedelta | None) -> str:
    """Return a duration with two or three significant figures: `0.8 ms`, `12.3 s`, `2 h 5 min`."""
    if seconds is None:
        return DASH
    if isinstance(seconds, timedelta):
        seconds = seconds.total_seconds()
    if seconds < _SECOND:
        milliseconds = seconds * 1000
        digits = 0 if milliseconds >= 10 or milliseconds == 0 else 1  # noqa: PLR2004 - two digits
        return f"{milliseconds:.{digits}f} ms"
    if seconds < _MINUTE:
        return f"{seconds:.1f} s".replace(".0 s", " s")
    whole = round(seconds)
    for size, unit, next_size, next_unit in (
        (_DAY, "d", _HOUR, "h"),
        (_HOUR, "h", _MINUTE, "min"),
        (_MINUTE, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // next_size
            return f"{whole // size} {unit}" + (f" {rest} {next_unit}" if rest else "")
    return f"{whole} s"


def count(number: float | None) -> str:
    """Return a number with thin spaces between thousands, and no needless decimals."""
    if number is None:
        return DASH
    text = f"{number:,.0f}" if float(number).is_integer() else f"{number:,.2f}".rstrip("0")
    return text.replace(",", "\N{NARROW NO-BREAK SPACE}")


def share(part: float, whole: float) -> str:
    """Return a part as a percentage; a dash if there is no whole."""
    if not whole:
        return DASH
    percent = 100 * part / whole
    if 0 < percent < 0.1:  # noqa: PLR2004 - the smallest that is shown
        return "< 0.1 %"
    return f"{percent:.1f} %".replace(".0 %", " %")


def size(number: float | None) -> str:
    """Return a number of bytes: `512 B`, `1.4 KiB`."""
    if number is None:
        return DASH
    units: Sequence[str] = ("B", "KiB", "MiB", "GiB", "TiB")
    for unit in units[:-1]:
        if number < 1024:  # noqa: PLR2004 - the next unit
            return f"{number:.1f} {unit}".replace(".0 ", " ")
        number /= 1024
    return f"{number:.1f} {units[-1]}"
