#!/usr/bin/env python3
"""`make install`, into a PREFIX and below a DESTDIR: each program says its version, the manual page and the completion are sound; a small program
built against the installed library alone, by what pkg-config says, moves two pages."""
import os
import shlex
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))


def run(*command, **more):
    return subprocess.run(command, check=True, capture_output=True, text=True, **more).stdout


def check_programs(root):
    for name in run("make", "-s", "-C", ROOT, "print-programs").split():
        said = run(os.path.join(root, "bin", os.path.basename(name)), "--version", cwd=root)
        if not said.startswith(os.path.basename(name) + " "):
            raise RuntimeError(f"{name} --version said {said!r}")
    page = open(os.path.join(root, "share", "man", "man1", "sluicectl.1")).read()
    if not page.startswith(".TH SLUICECTL 1"):
        raise RuntimeError(f"the manual page begins {page[:40]!r}")
    completion = os.path.join(root, "share", "bash-completion", "completions", "sluicectl")
    if "sluicectl" not in run("bash", "-c", f". {shlex.quote(completion)} && complete -p sluicectl"):
        raise RuntimeError("the completion completes nothing")


def check_destdir(directory):
    run("make", "-s", "-C", ROOT, "install", f"DESTDIR={directory}", "PREFIX=/usr")
    check_programs(f"{directory}/usr")
    if "prefix=/usr\n" not in open(f"{directory}/usr/lib/pkgconfig/libkvtransfer.pc").read():
        raise RuntimeError("pkg-config's file tells of DESTDIR")
    print("ok - installed below a DESTDIR for /usr")


def check(prefix, program):
    run("make", "-s", "-C", ROOT, "install", f"PREFIX={prefix}")
    check_programs(prefix)
    environment = dict(os.environ, PKG_CONFIG_PATH=f"{prefix}/lib/pkgconfig")
    flags = shlex.split(run("pkg-config", "--cflags", "--libs", "libkvtransfer", env=environment))
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
    with tempfile.TemporaryDirectory(prefix="a b&c") as prefix, tempfile.TemporaryDirectory(prefix="d e") as below:
        try:
            check(prefix, os.path.join(prefix, "two_pages"))
            check_destdir(below)
        except (subprocess.CalledProcessError, RuntimeError) as error:
            print(f"not ok - install: {error}\n{getattr(error, 'stdout', '')}{getattr(error, 'stderr', '')}")
            failed = 1
    print(f"{1 - failed} passed, {failed} failed")
    return failed


sys.exit(main())
