"""Finds RabbitMQ on this machine, or installs Debian's package where that is possible."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.local.daemon import LocalStackError

# Where the plain scripts live. The `rabbitmq-server` that Debian and RPM put on the PATH is a
# wrapper that switches to the user of the system's own node, so this folder comes before the PATH.
SCRIPT_FOLDERS = (
    "/usr/lib/rabbitmq/bin",
    "/opt/homebrew/opt/rabbitmq/sbin",
    "/usr/local/opt/rabbitmq/sbin",
)
POLICY = Path("/usr/sbin/policy-rc.d")  # Debian asks it before a package may start its service
FORBID = "#!/bin/sh\nexit 101\n"  # 101 = action forbidden

ADVICE = """RabbitMQ is not installed here, and {reason}. Choose one:
  Debian, Ubuntu:  sudo apt-get install rabbitmq-server
                   (it starts a service of its own, which Ringback does not need:
                   sudo systemctl disable --now rabbitmq-server)
  macOS:           brew install rabbitmq
  Docker:          docker compose up --detach rabbitmq, then
                   export RINGBACK_AMQP_URL=amqp://guest:guest@127.0.0.1:5672/"""


@dataclass(frozen=True)
class Installation:
    """A RabbitMQ that can be run."""

    scripts: Path  # the folder of its scripts
    prefix: tuple[str, ...] = ()  # what stands before each command, such as ("chroot", "/root4")

    def command(self, name: str) -> list[str]:
        """The argv that runs one of RabbitMQ's scripts."""
        return [*self.prefix, str(self.scripts / name)]


def find_installation() -> Installation | None:
    """The RabbitMQ of this machine; None if there is none."""
    found = [Path(folder) for folder in SCRIPT_FOLDERS]
    if on_path := shutil.which("rabbitmq-server"):
        found.append(Path(on_path).resolve().parent)
    for folder in found:
        if os.access(folder / "rabbitmq-server", os.X_OK):
            return Installation(folder)
    return None


def rabbitmq() -> Installation:
    """The RabbitMQ of this machine, installed by apt if there is none (root or passwordless sudo).

    Raises:
        LocalStackError: there is none and it can't be installed; says what to type.
    """
    if found := find_installation():
        return found
    if shutil.which("apt-get") is None:
        raise LocalStackError(ADVICE.format(reason="this system has no apt-get to install it with"))
    sudo = _sudo()
    if sudo is None:
        raise LocalStackError(ADVICE.format(reason="installing it needs root"))
    sys.stderr.write("RabbitMQ is not installed: installing Debian's rabbitmq-server ...\n")
    services = ["rabbitmq-server.service"]
    if shutil.which("epmd") is None:  # Erlang comes with it, and brings a service too
        services += ["epmd.service", "epmd.socket"]
    with _no_service_starts(sudo):
        _apt(sudo, "update")
        _apt(sudo, "install", "--yes", "--no-install-recommends", "rabbitmq-server")
    if shutil.which("systemctl"):  # nor shall they start with the next boot
        subprocess.run([*sudo, "systemctl", "disable", *services], check=False, capture_output=True)
    if found := find_installation():
        return found
    raise LocalStackError(ADVICE.format(reason="apt-get installed a package without it"))


def _sudo() -> list[str] | None:
    """What to put before a command to run it as root; None if that needs a password."""
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") is None:
        return None
    asked = subprocess.run(["sudo", "--non-interactive", "true"], check=False, capture_output=True)
    return ["sudo", "--non-interactive"] if asked.returncode == 0 else None


@contextmanager
def _no_service_starts(sudo: list[str]) -> Iterator[None]:
    """Keep new packages from starting services; a policy that is there already stays."""
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
        said = "\n".join(done.stdout.splitlines()[-10:])
        raise LocalStackError(ADVICE.format(reason=f"apt-get {arguments[0]} failed:\n{said}\n"))
