#!/usr/bin/env python3
"""Makes one of the two random test checkpoints and checks its hash. Not committed: made in test runs."""

import argparse
import hashlib
import os
import shutil
import sys

from sluice_ref.random_model import make_checkpoint

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
SHA256 = {
    1: "6b8d55f5274487949ef769394f4c874328b9d062d6ae9890a1d69599559baf25",
    2: "76f8f42b813643639f662e355a02f5bdba253748df9126bc24c39959acff19ea",
}


def digest(directory):
    """Over the weights and the config; the small files copied from the demo model do not count."""
    total = hashlib.sha256()
    for name in sorted(os.listdir(directory)):
        if name == "config.json" or name.startswith("model"):
            with open(os.path.join(directory, name), "rb") as f:
                total.update(name.encode() + b"\0" + hashlib.sha256(f.read()).digest())
    return total.hexdigest()


def ensure(which, directory):
    """Makes the checkpoint unless it is there with the right hash."""
    if os.path.isdir(directory) and digest(directory) == SHA256[which]:
        return
    fresh = f"{directory}.{os.getpid()}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    make_checkpoint(which, fresh, os.path.join(ROOT, "models", "demo"))
    found = digest(fresh)
    if found != SHA256[which]:
        raise SystemExit(f"checkpoint {which}: sha256 is {found}, expected {SHA256[which]}")
    shutil.rmtree(directory, ignore_errors=True)
    os.rename(fresh, directory)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--which", type=int, choices=(1, 2), required=True)
    parser.add_argument("--out", required=True, help="folder to make")
    args = parser.parse_args()
    os.makedirs(os.path.dirname(os.path.abspath(args.out)), exist_ok=True)
    ensure(args.which, os.path.abspath(args.out))
    print(f"{args.out}: sha256 {SHA256[args.which]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
