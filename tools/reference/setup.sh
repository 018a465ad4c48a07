#!/bin/sh
# Makes build/venv for the reference: NumPy from Debian (tools/deps installs it), else the pinned one by pip;
# tokenizers only with --tokenizers. Idempotent: does nothing when the environment already holds what is
# asked for. Prints the python to use.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
venv=${SLUICE_VENV:-$root/build/venv}
here=$root/tools/reference
want=$here/requirements.txt
[ "${1:-}" = --tokenizers ] && want=$here/requirements-tokenizers.txt
stamp=$venv/.$(basename "$want")
has_numpy() {
    "$1" -c 'import numpy' 2>/dev/null
}
if ! { [ -x "$venv/bin/python" ] && [ -f "$stamp" ] && cmp -s "$want" "$stamp"; }; then
    mkdir -p "$(dirname "$venv")"
    python=python3
    if [ -x /usr/bin/python3 ] && has_numpy /usr/bin/python3; then
        python=/usr/bin/python3
    fi
    [ -x "$venv/bin/python" ] || "$python" -m venv --system-site-packages "$venv" >&2
    if [ "${1:-}" = --tokenizers ] || ! has_numpy "$venv/bin/python"; then
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --retries 5 -r "$want" >&2
    fi
    cp "$want" "$stamp"
fi
echo "$venv/bin/python"
