#!/bin/sh
# `make lock`: installs what pyproject.toml asks for (with the extra `fast`, the group `dev` and the
# build tool) into a fresh environment, and writes down the versions that were chosen.
set -eu
cd "$(dirname "$0")/../.."
fresh="$(mktemp -d)"
trap 'rm -rf "$fresh"' EXIT
.venv/bin/python -m venv "$fresh"
pip="$fresh/bin/python -m pip --disable-pip-version-check --quiet"
$pip install --upgrade 'pip>=25.1'  # the first that knows --group
.venv/bin/python - > "$fresh/wanted" <<'PYTHON'
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)
print(*project["build-system"]["requires"], sep="\n")
print(*project["project"]["dependencies"], sep="\n")
print(*project["project"]["optional-dependencies"]["fast"], sep="\n")
PYTHON
$pip install --requirement "$fresh/wanted" --group dev
{
    echo '# Made by `make lock`: the environment of development and test, build tool included.'
    # uvloop exists for CPython on Unix only; Ringback runs without.
    $pip freeze --exclude pip --exclude setuptools | sed \
        "s/^uvloop==.*/& ; platform_python_implementation == 'CPython' and sys_platform != 'win32'/"
} > requirements.lock
