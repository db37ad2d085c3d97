#!/bin/sh
# Creates .venv with everything that Ringback needs. `make` runs it when one of its inputs has changed.
# If Python lacks venv, it installs Debian's venv package where possible.
set -eu
cd "$(dirname "$0")/../.."

say() { printf '%s\n' "$*" >&2; }

find_python() {
    for python in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
        # A copied or pyenv command can exist without working, so run it.
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$python"
            return
        fi
    done
    say 'Cannot find Python 3.11 or newer. Install it:'
    say '  Debian 12+, Ubuntu 24.04+:  sudo apt-get install python3 python3-venv'
    say '  macOS:                      brew install python@3.13'
    say 'or specify its path:          make PYTHON=/path/to/python3'
    return 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then sudo -n "$@"
    else return 1
    fi
}

# Debian has venv in a package of its own: python3.11-venv for python3.11.
install_venv() {
    package="$("$1" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    say "This Python lacks venv: installing $package ..."
    if command -v apt-get >/dev/null \
        && as_root apt-get -qq update \
        && as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes "$package" >/dev/null
    then return; fi
    say "Cannot create a virtual environment with $1: venv or ensurepip is missing, and $package"
    say 'could not be installed. Install it and try again:'
    say "  Debian, Ubuntu:  sudo apt-get install $package"
    say '  others:          use a Python that has venv:  make PYTHON=/path/to/python3'
    return 1
}

# `make run` and `make test` can start at the same time, so this script runs again under a lock. The
# lock is a file descriptor, which the kernel closes when the script ends.
if [ -z "${RINGBACK_BOOTSTRAP_LOCKED:-}" ]; then
    python="$(find_python)"
    mkdir -p .ringback
    RINGBACK_BOOTSTRAP_LOCKED=1 exec "$python" -c '
import fcntl, os
lock = os.open(".ringback/bootstrap.lock", os.O_RDWR | os.O_CREAT)
fcntl.flock(lock, fcntl.LOCK_EX)
os.set_inheritable(lock, True)
os.execvp("sh", ["sh", "deploy/local/bootstrap.sh"])'
fi
ready=.venv/ready
if [ "$ready" -nt requirements.lock ] && [ "$ready" -nt pyproject.toml ] && [ "$ready" -nt deploy/local/bootstrap.sh ]
then exit; fi  # another command has done it

# pip is there only if the environment is complete.
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    python="$(find_python)"
    "$python" -c 'import venv, ensurepip' 2>/dev/null || install_venv "$python"
    say "Creating .venv with $("$python" --version) ..."
    rm -rf .venv
    "$python" -m venv .venv
fi
say 'Installing the packages of requirements.lock ...'
pip='.venv/bin/python -m pip --disable-pip-version-check --quiet'
# Byte code is compiled when a module is first used. Compiling all of it takes a third of the time.
$pip install --no-compile --requirement requirements.lock
# The build tool is in the lock too, so nothing else is downloaded.
$pip install --no-compile --no-deps --no-build-isolation --editable .
touch "$ready"
