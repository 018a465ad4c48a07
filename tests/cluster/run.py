#!/usr/bin/env python3
"""Runs the cluster tests: real etcd, real processes, real sockets. `--only PART[,PART]` filters, `--full` runs what takes longer, `--list` names them.

A test is a function `test_NAME()` of tests/cluster/test_FILE.py (full-only ones: `full_NAME()`); it raises AssertionError, or Skip with what is missing.
"""

import argparse
import importlib
import os
import signal
import sys
import time
import traceback

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from lib import Skip  # noqa: E402


def collect():
    tests = []
    for entry in sorted(os.listdir(os.path.dirname(os.path.abspath(__file__)))):
        if entry.startswith("test_") and entry.endswith(".py"):
            module = importlib.import_module(entry[:-3])
            group = entry[5:-3]
            for name, function in vars(module).items():
                if callable(function) and name.startswith(("test_", "full_")):
                    tests.append((f"{group}.{name[5:]}", name.startswith("full_"), function))
    return tests


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a suite's limit: the running cluster goes down first
    passed, failed, skipped = 0, [], 0
    for name, full_only, function in collect():
        if not any(part in name for part in options.only.split(",")) or (full_only and not options.full):
            continue
        if options.list:
            print(name)
            continue
        start = time.monotonic()
        try:
            function()
            passed += 1
            print(f"ok      {name} ({time.monotonic() - start:.1f} s)", flush=True)
        except Skip as reason:
            skipped += 1
            print(f"SKIPPED {name}: {reason}", flush=True)
        except Exception:
            failed.append(name)
            traceback.print_exc()
            print(f"FAILED  {name} ({time.monotonic() - start:.1f} s)", flush=True)
    if not options.list:
        print(f"{passed} passed, {len(failed)} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
