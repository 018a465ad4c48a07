#!/usr/bin/env python3
"""Runs the simulator (tests/sim/README.md): the exact deadlines, many seeds, each planted bug.

tests/sim/run.py            2,500 seeds (over 10 million steps), all plants; some with the sanitizer
tests/sim/run.py --quick    what CI runs: 150 seeds, all plants
tests/sim/run.py --seeds A:B

The last line is always `N passed, N failed, N skipped`; the exit code is 1 if anything failed.
"""
import argparse
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
VIOLATION = re.compile(r"^violation: ([^:]+): .*\(seed (\d+), step (\d+), [\d.]+ s\)$", re.M)
PLANT_SEEDS = "1:200"
# What finds each planted bug: the rule that it breaks, or an assertion of the product before that.
PLANTS = {
    "free-early-recv": ("no reuse before release",),
    "free-early-send": ("no reuse before release",),
    # A row that the other owner overwrote may be read before the ledgers are compared.
    "two-owners": ("a page has one owner", "assertions hold", "tokens are right"),
    "drop-token": ("tokens are right",),
    "no-sums": ("tokens are right",),
    "lost-end": ("every request ends once",),
    "late-router": ("deadlines are kept",),
    "late-fetch": ("deadlines are kept",),
    "stale-epoch": ("fencing",),
    "open-door": ("bounded queues",),
    "leak": ("nothing is left",),
    "late-park": ("deadlines are kept",),
    "wrong-replay": ("tokens are right",),
    "no-budget": ("no storms",),
}
passed = failed = 0


def tell(ok, name, note=""):
    global passed, failed
    passed, failed = passed + ok, failed + (not ok)
    print(f"{'ok' if ok else 'not ok'} - {name}{': ' + note if note else ''}", flush=True)


def build(sanitizer=""):
    program = os.path.join("build", sanitizer, "tests", "sim")
    command = ["make", "-j2", *([f"SANITIZER={sanitizer}"] if sanitizer else []), program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        print(done.stdout[-4000:] + done.stderr[-4000:])
        return None
    return os.path.join(ROOT, program)


def sim(program, *arguments):
    """(exit code, what it printed); arguments as the driver takes them."""
    done = subprocess.run([program, *arguments], cwd=ROOT, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors="replace")
    return done.returncode, done.stdout


def run_scenarios(program):
    code, output = sim(program, "--scenarios")
    for line in output.splitlines():
        match = re.match(r"(ok|not ok) - (.*)", line)
        if match:
            tell(match.group(1) == "ok", match.group(2))
        elif line.startswith("  "):
            print(line)
    if code != 0:
        tell(False, "scenarios", output[-2000:])


def run_seeds(program, name, *arguments):
    code, output = sim(program, *arguments)
    tell(code == 0, name, output.strip()[-3000:])


def run_plant(program, plant, rules):
    """Found within the seeds, by the right rule, and again by its seed alone."""
    code, output = sim(program, "--plant", plant, "--seeds", PLANT_SEEDS)
    match = VIOLATION.search(output)
    name = f"planted bug {plant}"
    if code == 0 or not match:
        tell(False, name, f"not found in seeds {PLANT_SEEDS}: {output[-500:]}")
        return
    seed = match.group(2)
    _, again = sim(program, "--plant", plant, "--seed", seed)
    repeated = VIOLATION.search(again)
    if match.group(1) not in rules:
        tell(False, name, f"found by another rule: {match.group(0)}")
    elif not repeated or repeated.group(0) != match.group(0):
        tell(False, name, f"seed {seed} does not bring it back: {again[-500:]}")
    else:
        tell(True, name, f"seed {seed}, step {match.group(3)}, by \"{match.group(1)}\"")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="what CI runs")
    parser.add_argument("--seeds", help="A:B instead of the usual ones")
    options = parser.parse_args()
    program = build()
    if not program:
        tell(False, "build")
    else:
        run_scenarios(program)
        run_seeds(program, "one seed, one history", "--seeds", "1:5", "--replay")
        seeds = options.seeds or ("1:150" if options.quick else "1:2500")
        run_seeds(program, f"seeds {seeds}", "--seeds", seeds)
        for plant, rules in PLANTS.items():
            run_plant(program, plant, rules)
        if not options.quick:
            sanitized = build("address")
            if sanitized:
                run_seeds(sanitized, "seeds 1:200, sanitized", "--seeds", "1:200")
            else:
                tell(False, "sanitized build")
    print(f"{passed} passed, {failed} failed, 0 skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
