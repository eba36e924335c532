#!/usr/bin/env bash
# Makes .venv-readers: a Python with the H5MD readers and ASE that the tests compare with.
# Prints the path of that Python. Does nothing when requirements.txt has not changed.
set -euo pipefail
cd "$(dirname "$0")/.."

requirements=tests/python/requirements.txt
venv=.venv-readers
if ! cmp -s "$requirements" "$venv/installed.txt"; then
    echo "readers: making $venv with $(grep -c == $requirements) packages" >&2
    rm -rf "$venv"
    python3 -m venv "$venv" >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$requirements" >&2
    cp "$requirements" "$venv/installed.txt"
fi
echo "$PWD/$venv/bin/python"
