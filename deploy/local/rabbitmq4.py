"""A RabbitMQ 4 for the tests of a machine that has an older one: Debian 13's, in a chroot.

Needs root, debootstrap and unshare (Linux).
"""

import os
import shutil
import subprocess
from pathlib import Path

from deploy.local.daemon import CHECKOUT, LocalStackError
from deploy.local.install import Installation

SUITE = "trixie"  # Debian 13: RabbitMQ 4.0
# Runs a command in the chroot "$1", with this machine's /proc and /dev, and with the folder "$2",
# where the nodes live, under its own name. The mounts are in a namespace of the command's own, so
# they end with it, however it ends. It all becomes the command by exec: the PID stays the same.
ENTER = """
root=$1 shared=$2; shift 2
mkdir -p "$shared" "$root$shared"
mount --rbind /proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --bind "$shared" "$root$shared"
exec chroot "$root" "$@"
"""


def rabbitmq4(shared: Path) -> Installation:
    """Debian 13's RabbitMQ for nodes below `shared`; some minutes the first time.

    The chroot is kept in RINGBACK_RABBITMQ4_ROOT, or else below .ringback/.

    Raises:
        LocalStackError: it can't be made here; says why.
    """
    root = Path(
        os.environ.get("RINGBACK_RABBITMQ4_ROOT", CHECKOUT / ".ringback" / "rabbitmq4")
    ).absolute()
    installation = Installation(
        Path("/usr/lib/rabbitmq/bin"),
        (
            *("unshare", "--mount", "--propagation", "private"),
            *("sh", "-ec", ENTER, "enter", str(root), str(shared.absolute())),
        ),
    )
    if not (root / "complete").exists():
        _make(root, installation)
    return installation


def _make(root: Path, installation: Installation) -> None:
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        raise LocalStackError(
            "RabbitMQ 4 in a chroot needs root and debootstrap: sudo apt-get install debootstrap"
        )
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    _run("debootstrap", "--variant=minbase", SUITE, str(root))
    # In there, no package may start a service.
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    _run(
        *installation.prefix,
        *("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet", "install", "--yes"),
        *("--no-install-recommends", "rabbitmq-server"),
    )
    (root / "complete").touch()


def _run(*argv: str) -> None:
    done = subprocess.run(
        argv,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        said = "\n".join(done.stdout.splitlines()[-15:])
        raise LocalStackError(f"making the chroot for RabbitMQ 4: {argv[0]} failed:\n{said}")
