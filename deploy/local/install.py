"""Finds RabbitMQ on this machine, or installs Debian's package."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.local.daemon import CHECKOUT, LocalStackError, one_at_a_time

# Directories of the plain scripts. The `rabbitmq-server` that Debian and RPM put on the PATH is a
# wrapper that switches to the user of the system's node, so these directories come first.
SCRIPT_FOLDERS = (
    "/usr/lib/rabbitmq/bin",
    "/opt/homebrew/opt/rabbitmq/sbin",
    "/usr/local/opt/rabbitmq/sbin",
)
POLICY = Path("/usr/sbin/policy-rc.d")  # Debian runs it before a package starts its service
FORBID = "#!/bin/sh\nexit 101\n"  # 101 = action forbidden

ADVICE = """Cannot install RabbitMQ: {reason}. Choose one:
  Debian, Ubuntu:  sudo apt-get install rabbitmq-server
                   (it starts a service that Ringback does not need:
                   sudo systemctl disable --now rabbitmq-server)
  macOS:           brew install rabbitmq
  Docker:          docker compose up --detach rabbitmq, then
                   export RINGBACK_AMQP_URL=amqp://guest:guest@127.0.0.1:5672/"""


@dataclass(frozen=True)
class Installation:
    """An installed RabbitMQ."""

    scripts: Path  # the directory of its scripts
    prefix: tuple[str, ...] = ()  # before each command, for example ("chroot", "/root4")

    def command(self, name: str) -> list[str]:
        """Return the argv that runs one of RabbitMQ's scripts."""
        return [*self.prefix, str(self.scripts / name)]


def find_installation() -> Installation | None:
    """Return the RabbitMQ of this machine, or None."""
    found = [Path(folder) for folder in SCRIPT_FOLDERS]
    if on_path := shutil.which("rabbitmq-server"):
        found.append(Path(on_path).resolve().parent)
    for folder in found:
        if os.access(folder / "rabbitmq-server", os.X_OK):
            return Installation(folder)
    return None


def rabbitmq() -> Installation:
    """Return the RabbitMQ of this machine. If missing, apt installs it (as root or with sudo).

    Raises:
        LocalStackError: it cannot be installed. The text says what to type.
    """
    with one_at_a_time(CHECKOUT / ".ringback" / "install"):
        return find_installation() or _install()


def _install() -> Installation:
    if shutil.which("apt-get") is None:
        raise LocalStackError(ADVICE.format(reason="this system has no apt-get"))
    sudo = _sudo()
    if sudo is None:
        raise LocalStackError(ADVICE.format(reason="that needs root"))
    sys.stderr.write("RabbitMQ is not installed: installing Debian's rabbitmq-server ...\n")
    services = ["rabbitmq-server.service"]
    if shutil.which("epmd") is None:  # Erlang is a dependency with its own service
        services += ["epmd.service", "epmd.socket"]
    with _no_service_starts(sudo):
        _apt(sudo, "update")
        _apt(sudo, "install", "--yes", "--no-install-recommends", "rabbitmq-server")
    if shutil.which("systemctl"):  # they must not start at the next boot either
        subprocess.run([*sudo, "systemctl", "disable", *services], check=False, capture_output=True)
    if found := find_installation():
        return found
    raise LocalStackError(ADVICE.format(reason="the package does not contain it"))


def _sudo() -> list[str] | None:
    """Return the prefix that runs a command as root, or None if that needs a password."""
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") is None:
        return None
    test = subprocess.run(["sudo", "--non-interactive", "true"], check=False, capture_output=True)
    return ["sudo", "--non-interactive"] if test.returncode == 0 else None


@contextmanager
def _no_service_starts(sudo: list[str]) -> Iterator[None]:
    """Prevent new packages from starting services. An existing policy stays."""
    if POLICY.exists():
        yield
        return
    try:
        subprocess.run(
            [*sudo, "tee", str(POLICY)],
            input=FORBID,
            text=True,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        subprocess.run([*sudo, "chmod", "755", str(POLICY)], check=True)
        yield
    finally:
        subprocess.run([*sudo, "rm", "-f", str(POLICY)], check=True)


def _apt(sudo: list[str], *arguments: str) -> None:
    done = subprocess.run(
        [*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet", *arguments],
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        output = "\n".join(done.stdout.splitlines()[-10:])
        raise LocalStackError(ADVICE.format(reason=f"apt-get {arguments[0]} failed:\n{output}\n"))
