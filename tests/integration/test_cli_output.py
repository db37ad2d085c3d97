"""Standard output that nobody reads or that cannot be written, and interrupted commands."""

import subprocess
import sys

from tests.fakes.command import ROOT, Output

COUNT = 30_000


def run(command: str, amqp_url: str) -> Output:
    """Run a shell command; its exit code is that of the first program in a pipe."""
    done = subprocess.run(
        ("bash", "-o", "pipefail", "-c", command),
        env={"RINGBACK": f"{sys.executable} -m services", "RINGBACK_AMQP_URL": amqp_url},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return Output(done.returncode, done.stdout, done.stderr)
