#!/usr/bin/env python3
"""Model checking of who owns a page (ownership.pml), by spin.

tests/model/run.py          2 P, 2 D, 2 requests, each fault at each moment: exhaustive; and each rule taken away must be found
tests/model/run.py --full   also with two faults (exhaustive), and 3 requests with three faults (bitstate: a sample of the states)
"""
import argparse
import os
import re
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
BUILD = os.path.join(os.path.dirname(os.path.dirname(HERE)), "build", "model")
RULES = [line.split()[1] for line in open(os.path.join(HERE, "ownership.pml")) if re.match(r"#define RULE_\w+ +\(planted", line)]
TWO_FAULTS = {"RULE_P_DEADLINE"}  # found with --full only: the router dies unheard, and P's line to D is cut in silence
STATES = re.compile(r"^ *([\d.e+]+) states, stored", re.M)


def build(requests, faults, optimise, *defines):
    """The checker for so many requests and faults."""
    name = os.path.join(BUILD, f"r{requests}f{faults}{''.join(defines)}")
    os.makedirs(name, exist_ok=True)
    shutil.copy(os.path.join(HERE, "ownership.pml"), name)
    subprocess.run(["spin", f"-DREQUESTS={requests}", f"-DFAULTS={faults}", "-a", "ownership.pml"], cwd=name, check=True)
    subprocess.run(["cc", "-w", optimise, "-DSAFETY", "-DNOREDUCE", "-DMEMLIM=4000", *defines, "-o", "pan", "pan.c"], cwd=name,
                   check=True)
    return name


def run(folder, *options, planted=0):
    """(violated assertion or None, states seen). -QN: at most N minutes, and then only a sample is wanted."""
    result = subprocess.run(["./pan", "-m100000", *options], cwd=folder, capture_output=True, text=True,
                            env={**os.environ, "PLANTED": str(planted)})
    found = re.search(r"^pan:1: (.*)$", result.stdout, re.M)
    states = STATES.search(result.stdout)
    incomplete = re.search(r"Search not completed|max search depth too small|reached -DMEMLIM", result.stdout)
    sample = any(option.startswith("-Q") for option in options)
    if not states or (incomplete and not found and not sample):
        raise SystemExit(f"pan failed:\n{result.stdout}{result.stderr}")
    return found and found.group(1), int(float(states.group(1)))


def show(folder):
    """The way to the violation, as spin tells it."""
    trail = subprocess.run(["spin", "-t", "-p", "ownership.pml"], cwd=folder, capture_output=True, text=True).stdout
    print("".join("   " + line + "\n" for line in trail.splitlines()[-60:]))


class Count:
    passed = failed = 0

    def tell(self, fine, text):
        self.passed += fine
        self.failed += not fine
        print(f"{'ok' if fine else 'FAILED'}  {text}", flush=True)


def check(count, folder, what, *options):
    found, states = run(folder, *options)
    count.tell(not found, f"{what}: {states} states{', ' + found if found else ''}")
    if found:
        show(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args()
    if not shutil.which("spin"):
        sys.exit("spin is missing: run `make deps`")
    count = Count()
    one = build(2, 1, "-O0")
    check(count, one, "2 P, 2 D, 2 requests, one fault, exhaustive", "-w20")
    two = build(2, 2, "-O2") if options.full else None
    for number, rule in enumerate(RULES, 1):
        folder = two if rule in TWO_FAULTS else one
        if not folder:
            continue
        found, states = run(folder, "-w20", planted=number)
        count.tell(bool(found), f"without {rule}: {found or 'nothing is found'} ({states} states)")
    if options.full:
        check(count, two, "2 P, 2 D, 2 requests, two faults, exhaustive", "-w24")
        check(count, build(3, 3, "-O2", "-DBITSTATE"), "2 P, 2 D, 3 requests, three faults, bitstate", "-w32", "-k3", "-Q20")
    print(f"{count.passed} passed, {count.failed} failed")
    return 1 if count.failed else 0


if __name__ == "__main__":
    sys.exit(main())
