#!/bin/sh
# Makes build/venv with the pinned packages of the reference (NumPy; tokenizers only with --tokenizers).
# Idempotent: does nothing when the environment already holds what is asked for. Prints the python to use.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
venv=${SLUICE_VENV:-$root/build/venv}
here=$root/tools/reference
want=$here/requirements.txt
[ "${1:-}" = --tokenizers ] && want=$here/requirements-tokenizers.txt
stamp=$venv/.$(basename "$want")
if ! { [ -x "$venv/bin/python" ] && [ -f "$stamp" ] && cmp -s "$want" "$stamp"; }; then
    mkdir -p "$(dirname "$venv")"
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv" >&2
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$want" >&2
    cp "$want" "$stamp"
fi
echo "$venv/bin/python"
