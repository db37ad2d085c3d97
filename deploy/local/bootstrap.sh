#!/bin/sh
# Makes .venv with all that Ringback needs; `make` calls it when something it is made from has changed.
# Installs Debian's venv package where Python lacks it and that is possible, else says what to type.
set -eu
cd "$(dirname "$0")/../.."

say() { printf '%s\n' "$*" >&2; }

find_python() {
    for python in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
        # A copied or pyenv command may exist and yet not run: ask it.
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$python"
            return
        fi
    done
    say 'Ringback needs Python 3.11 or newer, and none was found. Install one:'
    say '  Debian 12+, Ubuntu 24.04+:  sudo apt-get install python3 python3-venv'
    say '  macOS:                      brew install python@3.13'
    say 'or name yours:                make PYTHON=/path/to/python3'
    return 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then sudo -n "$@"
    else return 1
    fi
}

# Debian splits venv from Python: python3.11-venv for its python3.11.
install_venv() {
    package="$("$1" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    say "This Python lacks venv: installing $package ..."
    if command -v apt-get >/dev/null \
        && as_root apt-get -qq update \
        && as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes "$package" >/dev/null
    then return; fi
    say "$1 can't make a virtual environment (venv or ensurepip is missing), and $package"
    say 'could not be installed from here. Install it and try again:'
    say "  Debian, Ubuntu:  sudo apt-get install $package"
    say '  others:          a Python that has venv, named as  make PYTHON=/path/to/python3'
    return 1
}

if ! .venv/bin/python -c '' 2>/dev/null; then
    python="$(find_python)"
    "$python" -c 'import venv, ensurepip' 2>/dev/null || install_venv "$python"
    say "Making .venv with $("$python" --version) ..."
    rm -rf .venv
    "$python" -m venv .venv
fi
say 'Installing what requirements.lock names ...'
pip='.venv/bin/python -m pip --disable-pip-version-check --quiet'
# Byte code is made when a module is first used; making all of it would take a third of the time.
$pip install --no-compile --requirement requirements.lock
# The build tool is in the lock too, so nothing is fetched beside it.
$pip install --no-compile --no-deps --no-build-isolation --editable .
touch .venv/ready
