"""RabbitMQ 4 from Debian 13 in a chroot, for tests on a machine with an older RabbitMQ.

Needs root, debootstrap and unshare (Linux).
"""

import os
import shutil
import subprocess
from pathlib import Path

from deploy.local.daemon import CHECKOUT, LocalStackError
from deploy.local.install import Installation

SUITE = "trixie"  # Debian 13: RabbitMQ 4.0
# Runs a command in the chroot "$1" with /proc, /dev and the directory "$2" of this machine. The
# mounts are in the command's own namespace, so they end with it. exec keeps the PID.
ENTER = """
root=$1 shared=$2; shift 2
mkdir -p "$shared" "$root$shared"
mount --rbind /proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --bind "$shared" "$root$shared"
exec chroot "$root" "$@"
"""


def rabbitmq4(shared: Path) -> Installation:
    """Return Debian 13's RabbitMQ for nodes below `shared`. The first time takes minutes.

    The chroot stays in RINGBACK_RABBITMQ4_ROOT, by default in .ringback/.

    Raises:
        LocalStackError: the chroot cannot be created.
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
            "Cannot create a chroot: that needs root and debootstrap. Install it:"
            " sudo apt-get install debootstrap"
        )
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    _run("debootstrap", "--variant=minbase", SUITE, str(root))
    # No package may start a service in the chroot.
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
        output = "\n".join(done.stdout.splitlines()[-15:])
        raise LocalStackError(
            f"Cannot create the chroot for RabbitMQ 4: {argv[0]} failed.\n{output}"
        )
