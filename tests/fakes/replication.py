"""A PostgreSQL primary with a streaming standby, replicated synchronously."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from deploy.local.daemon import free_port
from deploy.local.database import Database, _as_user, _environment, _reachable, _server_user

STANDBY = "standby"


class Pair:
    """Two servers, at first a primary and its standby. `url` lists both."""

    def __init__(self, directory: Path) -> None:
        self.primary = Database(directory / "primary", durable=False)
        self.standby = Database(directory / "standby", durable=False)

    @property
    def url(self) -> str:
        """Return the URL of both servers; the first primary is the first host."""
        first, second = urlsplit(self.primary.url), urlsplit(self.standby.url)
        return first._replace(netloc=f"{first.netloc},{second.hostname}:{second.port}").geturl()

    def start(self) -> None:
        """Start the primary and, from a copy of its data, the standby. Commits wait for both."""
        self.primary.start()
        self._copy()
        self.standby.start()
        for sql in (
            f"ALTER SYSTEM SET synchronous_standby_names = '{STANDBY}'",
            "ALTER SYSTEM SET synchronous_commit = 'on'",
            "SELECT pg_reload_conf()",
        ):
            self.primary._query(sql)  # noqa: SLF001 - as the fixtures of other databases do

    def in_sync(self) -> bool:
        """Return whether commits on the primary wait for the standby."""
        state = "SELECT sync_state FROM pg_stat_replication"
        return self.primary._query(state).strip() == "sync"  # noqa: SLF001

    def kill_primary(self) -> None:
        """Kill the primary with -9. Its backends end with it."""
        self.primary._server.kill()  # noqa: SLF001

    def promote(self) -> None:
        """Promote the standby, and let it commit without another standby."""
        self.standby._query("ALTER SYSTEM SET synchronous_standby_names = ''")  # noqa: SLF001
        self.standby._query("SELECT pg_reload_conf()")  # noqa: SLF001
        assert self.standby._query("SELECT pg_promote()").strip() == "t"  # noqa: SLF001

    def return_as_standby(self) -> None:
        """Start the old primary as a standby: it accepts connections, but no writes."""
        mark = _home(self.primary) / "data" / "standby.signal"
        mark.touch()
        if user := _server_user():
            os.chown(mark, user.pw_uid, user.pw_gid)
        self.primary.start()

    def stop(self) -> None:
        """Stop both servers."""
        for server in (self.standby, self.primary):
            server._server.kill()  # noqa: SLF001

    def _copy(self) -> None:
        self.standby.directory.mkdir(parents=True)
        user = _server_user()
        home = _home(self.standby)
        data = home / "data"
        data.mkdir(mode=0o700)
        if user:
            os.chown(data, user.pw_uid, user.pw_gid)
        shutil.copy(self.primary.directory / "password", self.standby.directory / "password")
        (self.standby.directory / "port").write_text(str(free_port()))
        source = urlsplit(self.primary.url)
        upstream = (
            f"host=127.0.0.1 port={source.port} user=ringback password={source.password}"
            f" application_name={STANDBY}"
        )
        subprocess.run(
            [
                str(self.primary._programs / "pg_basebackup"),  # noqa: SLF001
                *("--pgdata", str(data)),
                *("--write-recovery-conf", "--checkpoint", "fast", "--no-sync"),
                *("--wal-method", "stream"),
                *("--dbname", upstream),
            ],
            env=_environment(),
            cwd="/",
            check=True,
            **_as_user(user),
        )


def _home(server: Database) -> Path:
    return _reachable(server.directory, _server_user())


@contextmanager
def replicated(directory: Path) -> Iterator[Pair]:
    """Yield a running pair whose standby is synchronous."""
    pair = Pair(directory)
    try:
        pair.start()
        yield pair
    finally:
        pair.stop()
