#!/usr/bin/env python3
"""`make install`, then a small program built against the installed copy alone, by what pkg-config says. Run, it moves two pages."""
import os
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))


def run(*command, **more):
    return subprocess.run(command, check=True, capture_output=True, text=True, **more).stdout


def check(prefix, program):
    run("make", "-s", "-C", ROOT, "install", f"PREFIX={prefix}")
    environment = dict(os.environ, PKG_CONFIG_PATH=f"{prefix}/lib/pkgconfig")
    flags = run("pkg-config", "--cflags", "--libs", "libkvtransfer", env=environment).split()
    # Outside the tree: no header can come from there. The flags of pkg-config follow the source, for a linker that reads in order.
    run("cc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-D_GNU_SOURCE", "-o", program,
        os.path.join(HERE, "two_pages.c"), *flags, cwd=prefix)
    said = run(program, cwd=prefix)
    if said != "equal\n":
        raise RuntimeError(f"the program said {said!r}")
    version = run("pkg-config", "--modversion", "libkvtransfer", env=environment).strip()
    print(f"ok - libkvtransfer {version} installed, a program built against it moved its pages")


def main():
    failed = 0
    with tempfile.TemporaryDirectory() as prefix:
        try:
            check(prefix, os.path.join(prefix, "two_pages"))
        except (subprocess.CalledProcessError, RuntimeError) as error:
            print(f"not ok - install: {error}\n{getattr(error, 'stdout', '')}{getattr(error, 'stderr', '')}")
            failed = 1
    print(f"{1 - failed} passed, {failed} failed")
    return failed


sys.exit(main())
