#!/bin/bash
# Writes the bill of materials of the image to dist/, and looks for known vulnerabilities in the
# versions of requirements.lock. Exits with 1 if one is known, and with 2 if that cannot be found out.
set -euo pipefail
cd "$(dirname "$0")/../.."
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

# The tools are not dependencies of Ringback, so they have an environment of their own.
python3 -m venv "$work/tools"
tools="$work/tools/bin"
"$tools/pip" install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0 pip-audit==2.10.1

# What the image contains: the lock as constraints, without development packages and pip.
python3 -m venv --without-pip "$work/product"
"$tools/pip" --python "$work/product" install --quiet --disable-pip-version-check \
    --constraint requirements.lock '.[fast,otel]'
mkdir -p dist
"$tools/cyclonedx-py" environment --pyproject pyproject.toml --mc-type application \
    --output-reproducible --output-file dist/ringback.cdx.json "$work/product"
echo 'Bill of materials: dist/ringback.cdx.json'

# A vulnerability and an error both end pip-audit with 1, but only the former writes a result.
# --strict: a package that the database does not know is an error. Without it, an index that has no
# advisories at all would look like one without vulnerabilities.
if "$tools/pip-audit" --requirement requirements.lock --no-deps --disable-pip --strict \
    --progress-spinner off --desc on --format markdown --output "$work/result"
then exit; fi
if [[ ! -s "$work/result" ]]; then
    echo 'Cannot audit requirements.lock: the advisories are not available. Run it again elsewhere.' >&2
    exit 2
fi
cat "$work/result"
exit 1
