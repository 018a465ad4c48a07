"""Imported before NumPy: a program that was started with a python without it goes on with the environment that
setup.sh makes."""

import os
import subprocess
import sys

try:
    import numpy  # noqa: F401
except ImportError:
    _setup = os.path.join(os.path.dirname(os.path.abspath(__file__)), "setup.sh")
    _done = subprocess.run([_setup], check=False, stdout=subprocess.PIPE, text=True)
    if _done.returncode != 0:  # it said why
        raise SystemExit(f"{sys.argv[0]}: NumPy is needed, and {_setup} failed") from None
    _python = _done.stdout.strip()
    os.execv(_python, [_python, os.path.abspath(sys.argv[0])] + sys.argv[1:])
