#!/usr/bin/env python3
"""Runs the cluster tests: real etcd, real processes, real sockets.

    tests/cluster/run.py [--only PART[,PART]] [--full] [--jobs N] [--list]

`--only` filters by parts of names, `--full` runs what takes longer too, `--jobs` runs so many side by side, each in a process of its own: most
of a test's time is waiting. A test is a function `test_NAME()` of tests/cluster/test_FILE.py (full-only ones: `full_NAME()`); it raises
AssertionError, or Skip with what is missing.
"""

import argparse
import concurrent.futures
import importlib
import os
import queue
import signal
import subprocess
import sys
import time
import traceback

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from lib import Skip  # noqa: E402

PASSED, SKIPPED, FAILED = 0, 77, 1  # exit codes of one test's process
PORTS = 15000, 32000  # what deploy/local/cluster takes its ports from


def collect(file=None):
    """{name: (only with --full, function)}, of one file or of all."""
    tests = {}
    for entry in sorted(os.listdir(os.path.dirname(os.path.abspath(__file__)))):
        if entry.startswith("test_") and entry.endswith(".py") and file in (None, entry[5:-3]):
            module = importlib.import_module(entry[:-3])
            for name, function in vars(module).items():
                if callable(function) and name.startswith(("test_", "full_")) and function.__module__ == module.__name__:
                    tests[f"{entry[5:-3]}.{name[5:]}"] = (name.startswith("full_"), function)
    return tests


def run_one(name, function):
    start = time.monotonic()
    try:
        function()
        print(f"ok      {name} ({time.monotonic() - start:.1f} s)", flush=True)
        return PASSED
    except Skip as reason:
        print(f"SKIPPED {name}: {reason}", flush=True)
        return SKIPPED
    except Exception:
        traceback.print_exc(file=sys.stdout)
        print(f"FAILED  {name} ({time.monotonic() - start:.1f} s)", flush=True)
        return FAILED


class Apart:
    """Runs tests in processes of their own, `jobs` at once, whose clusters share no ports; their output comes whole, when they end."""

    def __init__(self, jobs):
        self.running, self.ended, self.ports = set(), False, queue.SimpleQueue()
        each = (PORTS[1] - PORTS[0]) // jobs
        for first in range(PORTS[0], PORTS[0] + jobs * each, each):
            self.ports.put(f"{first}-{first + each}")

    def __call__(self, name, _function):
        if self.ended:
            return FAILED
        ports = self.ports.get()
        process = subprocess.Popen([sys.executable, os.path.abspath(__file__), "--one", name], stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True, errors="replace", env={**os.environ, "SLUICE_CLUSTER_PORTS": ports})
        self.running.add(process)
        output, _ = process.communicate()
        self.running.discard(process)
        self.ports.put(ports)
        sys.stdout.write(output)
        sys.stdout.flush()
        return process.returncode

    def end(self):
        self.ended = True
        for process in list(self.running):
            process.terminate()


def run_all(tests, jobs):
    apart = Apart(jobs)

    def on_limit(*_):  # a suite's limit: the running clusters go down first
        apart.end()
        sys.exit(143)
    signal.signal(signal.SIGTERM, on_limit)
    if jobs == 1:
        return [run_one(name, function) for name, function in tests]
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(lambda test: apart(*test), tests))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], type=lambda text: text.split(","))
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        return run_one(options.one, collect(options.one.partition(".")[0])[options.one][1])
    known = collect()
    wanted = [part for parts in options.only for part in parts]
    tests = [(name, function) for name, (full_only, function) in known.items()
             if (not wanted or any(part in name for part in wanted)) and (options.full or not full_only)]
    if options.list:
        print("\n".join(name for name, _ in tests))
        return 0
    codes = run_all(tests, options.jobs)
    passed, skipped = codes.count(PASSED), codes.count(SKIPPED)
    print(f"{passed} passed, {len(codes) - passed - skipped} failed, {skipped} skipped")
    return 0 if passed + skipped == len(codes) else 1


if __name__ == "__main__":
    sys.exit(main())
