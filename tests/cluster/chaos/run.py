#!/usr/bin/env python3
"""Chaos: real processes, real faults, answers that are known beforehand (README.md).

    run.py quick [--seconds 70]            what CI runs
    run.py volume [--requests N --faults M --seed S]
    run.py matrix [--faults kill,stop --steps "mid fetch" --seconds 10 --shm]
"""

import argparse
import asyncio
import collections
import os
import shutil
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.dont_write_bytecode = True

import matrix as matrix_cells  # noqa: E402
from client import Items, Reference  # noqa: E402
from faults import Schedule, mount_tiny, unmount  # noqa: E402
from traffic import Traffic  # noqa: E402
from world import MODEL, ROOT, World, can_loss, can_netns, can_redirect, together  # noqa: E402

PACE = (1500, 4000)  # of the stub engine: microseconds a step, nanoseconds a row
MATRIX_PACE = (20000, 20000)  # an answer takes a second
PROCESS_KINDS = ["kill", "stop", "hold", "slow", "drain"]
LINK_KINDS = ["link", "one-way", "partition"]


def reference():
    return Reference(os.path.join(ROOT, "build", "tests", "chaos", "reference"), MODEL)


def set_pace(world, step_us, row_ns):
    world.pace = (step_us, row_ns)
    for control in world.controls.values():
        control.pace(step_us, row_ns)


def kinds_possible(netns, disk):
    return PROCESS_KINDS + (LINK_KINDS if netns else []) + (["loss"] if netns and can_loss() else []) + (["disk"] if disk else [])


async def volume(options):
    netns = can_netns()
    disk = os.path.join(ROOT, "build", "test-clusters", f"chaos-disk-{os.getpid()}")
    tiny = mount_tiny(disk, "48m")
    try:
        await volume_in(options, netns, disk if tiny else None)
    finally:
        if tiny:
            unmount(disk)
        shutil.rmtree(disk, ignore_errors=True)


async def volume_in(options, netns, disk):
    source = reference()
    kinds = kinds_possible(netns, disk)
    print(f"seed {options.seed}: faults {', '.join(kinds)}" + ("" if netns else "; no network namespaces here"), flush=True)
    world = World("volume", netns=netns, kv_memory="64MiB")
    world.disk, world.disk_node, world.pace = disk, "decode-0", PACE
    if disk:
        world.options.env.append(f"decode-0:SLUICE_KV_DISK={disk}/tier:32MiB")
    async with world:
        set_pace(world, *PACE)
        warm = Traffic(world, Items(options.seed + 1000, source), options.clients, count=300)
        await warm.run()
        assert not warm.wrong, warm.wrong[:3]
        await world.at_rest()
        fds = world.count_fds()
        began = time.monotonic()
        schedule = Schedule(world, options.seed, kinds, options.scale, os.path.join(world.directory, "faults.log"))
        traffic = Traffic(world, Items(options.seed, source), options.clients, schedule, seed=options.seed)
        await together(traffic.run(), schedule.run_until_over(), watch(options, traffic, schedule, began))
        seconds = time.monotonic() - began
        report(options, traffic, schedule, seconds)
        await world.at_rest()
        world.check_fds(fds, 12)
        assert not traffic.wrong, "\n".join(traffic.wrong[:5])
    source.close()


def is_enough(options, traffic, schedule, began):
    if options.seconds:
        return time.monotonic() - began > options.seconds
    return traffic.begun >= options.requests and len(schedule.history) >= options.faults


async def watch(options, traffic, schedule, began):
    """Ends the run, and tells how far it is."""
    told = began
    while not is_enough(options, traffic, schedule, began) and not traffic.wrong:
        await asyncio.sleep(0.2)
        if time.monotonic() - told > 30:
            told = time.monotonic()
            print(f"{told - began:.0f} s: {dict(traffic.seen)}, {len(schedule.history)} faults", flush=True)
    traffic.over.set()


def report(options, traffic, schedule, seconds):
    kinds = collections.Counter(fault.kind for fault in schedule.history)
    spans = sorted(traffic.durations)
    print(f"seed {options.seed}: {sum(traffic.seen.values())} requests ({', '.join(f'{count} {what}' for what, count in sorted(traffic.seen.items()))}), "
          f"{len(schedule.history)} faults ({', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))}) in {seconds:.0f} s; "
          f"a request took {spans[len(spans) // 2]:.2f} s (p50), {spans[len(spans) * 99 // 100]:.2f} s (p99), {spans[-1]:.2f} s (longest)", flush=True)


async def matrix(options):
    """All cells on one cluster; 200 ms of delay need one with proxies, so they are a run of their own."""
    faults = options.faults.split(",") if options.faults else [kind for kind in matrix_cells.FAULTS if kind != "delay"]
    steps = options.steps.split(",") if options.steps else list(matrix_cells.STEPS)
    needed = {"loss": can_loss, "delay": can_redirect, "link": can_netns, "one-way": can_netns}
    for kind in list(faults):
        if kind in needed and (options.shm or not needed[kind]()):
            print(f"SKIPPED {kind}: " + ("links are not there on shared memory" if options.shm else "this machine cannot"), flush=True)
            faults.remove(kind)
    source = reference()
    world = World("matrix", prefill=2, decode=2, routers=1, netns=can_netns() and not options.shm, proxies="delay" in faults)
    world.pace = MATRIX_PACE
    async with world:
        set_pace(world, *MATRIX_PACE)
        green, red = await matrix_cells.run_cells(world, Items(options.seed, source), steps, faults, options.seconds,
                                                  lambda line: print(line, flush=True))
    source.close()
    print(f"{green} passed, {len(red)} failed", flush=True)
    assert not red, "; ".join(str(cell) for cell, _ in red)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("volume")
    sub.add_argument("--requests", type=int, default=20000)
    sub.add_argument("--faults", type=int, default=1000)
    sub.add_argument("--seconds", type=float, default=0)
    sub.add_argument("--scale", type=float, default=1.0, help="of how long faults last, and of the pauses between them")
    cells = commands.add_parser("matrix")
    cells.add_argument("--faults", default="")
    cells.add_argument("--steps", default="")
    cells.add_argument("--seconds", type=float, default=matrix_cells.SECONDS)
    cells.add_argument("--shm", action="store_true", help="all on one host: pages go by shared memory")
    for command in (sub, cells):
        command.add_argument("--seed", type=int, default=1)
        command.add_argument("--clients", type=int, default=24)
    options = parser.parse_args()
    try:
        asyncio.run(globals()[options.command](options))
    except AssertionError as error:
        print(f"FAILED: {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
