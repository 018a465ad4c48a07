#!/usr/bin/env python3
"""Chaos: real processes, real faults, answers that are known beforehand (README.md).

    run.py quick [--seconds 45]            what CI runs
    run.py planted                         planted bugs must be found
    run.py volume [--requests N --faults M --seed S]
    run.py matrix [--faults kill,stop --steps "mid fetch" --seconds 10 --shm]
    run.py times [--whose prefill --lost]  from a fault to the next token
    run.py cancel                          from a client's end to free pages
    run.py drain [--streams 100]           a decode node leaves with so many streams running
    run.py scale [--requests 60]           1P1D, 1P3D, 3P1D by `scale apply` under load: who gains
    run.py etcd [--seconds 600]            etcd away under load
    run.py demo                            the shipped programs and the demo model

SLUICE_CHAOS_NODE_ARGS="--kv-transport tcp" gives all nodes other options.
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

import drain as drain_trial  # noqa: E402
import matrix as matrix_cells  # noqa: E402
import scale as scale_trial  # noqa: E402
import times as times_trials  # noqa: E402
from client import DemoItems, Items, Reference, ask  # noqa: E402
from faults import Schedule, mount_tiny, unmount  # noqa: E402
from traffic import Traffic  # noqa: E402
from world import MODEL, NAMED, ROOT, STUBS, World, can_loss, can_netns, can_redirect, can_reset, together  # noqa: E402

PACE = (1500, 4000)  # of the stub engine: microseconds a step, nanoseconds a row
TIMES_PACE = (5000, 20000)  # 200 steps a second, 50,000 prompt tokens
MATRIX_PACE = (20000, 20000)  # an answer takes a second
PROCESS_KINDS = ["kill", "stop", "hold", "slow", "drain"]
LINK_KINDS = ["link", "one-way", "partition"]


def reference():
    return Reference(os.path.join(STUBS, "reference"), MODEL)


def set_pace(world, step_us, row_ns):
    world.pace = (step_us, row_ns)
    for control in world.controls.values():
        control.pace(step_us, row_ns)


def kinds_possible(netns, disk):
    return PROCESS_KINDS + (LINK_KINDS if netns else []) + (["loss"] if netns and can_loss() else []) + (["disk"] if disk else []) + (["reset"] if can_reset() else [])


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
        now = world.check_fds(fds, 12)
        print(f"at rest; file descriptors before and now: {', '.join(f'{name} {fds[name]} {now[name]}' for name in now)}", flush=True)
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
    if "re-attach" in steps and not can_reset():
        print("SKIPPED re-attach: this kernel does not end connections (ss -K)", flush=True)
        steps.remove("re-attach")
    needed = {"loss": can_loss, "delay": can_redirect, "link": can_netns, "one-way": can_netns}
    for kind in list(faults):
        if kind in needed and (options.shm or not needed[kind]()):
            print(f"SKIPPED {kind}: " + ("links are not there on shared memory" if options.shm else "this machine cannot"), flush=True)
            faults.remove(kind)
    source = reference()
    world = World("matrix", prefill=2, decode=2, routers=1, netns=can_netns() and not options.shm, proxies="delay" in faults, deadlines=NAMED)
    world.pace = MATRIX_PACE
    async with world:
        set_pace(world, *MATRIX_PACE)
        green, red = await matrix_cells.run_cells(world, Items(options.seed, source), steps, faults, options.seconds,
                                                  lambda line: print(line, flush=True))
    source.close()
    print(f"{green} passed, {len(red)} failed", flush=True)
    assert not red, "; ".join(str(cell) for cell, _ in red)


def percentiles(seconds):
    """p50, p99 (of few: the longest)."""
    ordered = sorted(seconds)
    return ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]


async def times(options):
    """A table of what a fault costs, beside the deadlines that decide it."""
    source = reference()
    whose, survive = options.whose, options.survive
    site = None if whose == "decode" else ("commit", 2) if survive else ("ticket", 1)
    kinds = options.faults.split(",") if options.faults else list(times_trials.FAULTS)
    world = World(f"times-{whose}", prefill=2, decode=2, routers=1, netns=can_netns(), proxies="delay" in kinds, kv_memory="448MiB",
                  prefill_args=f"--prefix-cache={'true' if survive else 'false'}", deadlines=NAMED)
    world.pace = TIMES_PACE
    async with world:
        set_pace(world, *TIMES_PACE)
        items = Items(options.seed, source)
        rows = await times_trials.measure(world, items, options.trials, site, kinds, times_trials.LENGTHS,
                                          lambda line: print(f"# {line}", flush=True))
    source.close()
    print(f"fault on a {whose} node, pages {'survive' if survive else 'are lost'}; seconds to the next token, p50 / p99 of {options.trials}")
    print(f"deadlines: {world.deadlines}, keepalive 2 s + 1 s, kv stall 5 s")
    for kind in kinds:
        cells = [f"{p50:.2f} / {p99:.2f}" for row_kind, _, seconds in rows if row_kind == kind for p50, p99 in [percentiles(seconds)]]
        print(f"| {whose} {kind} | {'yes' if survive else 'no'} | " + " | ".join(cells) + " |", flush=True)


async def cancel(options):
    """Milliseconds from a client's hanging up to free pages on both sides."""
    source = reference()
    world = World("cancel", prefill=1, decode=1, routers=1, netns=can_netns(), kv_memory="448MiB")
    world.pace = TIMES_PACE
    async with world:
        set_pace(world, *TIMES_PACE)
        items = Items(options.seed, source)
        for while_decoding in (False, True):
            for length in times_trials.LENGTHS:
                both = [await times_trials.measure_cancel(world, items, length, while_decoding) for _ in range(options.trials)]
                cells = [f"{1e3 * p50:.1f} / {1e3 * p99:.1f}" for side in zip(*both) for p50, p99 in [percentiles(side)]]
                print(f"| {'mid stream' if while_decoding else 'mid fetch'} | {length} | {cells[0]} | {cells[1]} |", flush=True)
    source.close()


async def drain(options):
    """One decode node has all streams, and drains; the other takes them."""
    source = reference()
    world = World("drain", prefill=1, decode=2, routers=1, netns=False, kv_memory="256MiB", decode_args="--max-sequences 128",
                  deadlines={**NAMED, "progress-timeout": "30s", "token-timeout": "30s", "admit-timeout": "30s"})
    async with world:
        began = time.monotonic()
        moved = await drain_trial.drain_with_streams(world, Items(options.seed, source), options.streams)
        print(f"a drain with {options.streams} running streams, {moved:.0f} moved: all {options.streams + drain_trial.MORE} exact "
              f"({time.monotonic() - began:.1f} s)", flush=True)
    source.close()


async def scale(options):
    """A table of what clients see of more nodes of one role; that none of their requests fails is the verdict."""
    source = reference()
    directory = os.path.join(ROOT, "build", "test-clusters", f"chaos-scale-{os.getpid()}")
    rows, answers = await scale_trial.scale(Items(options.seed, source), STUBS, directory, options.requests, lambda line: print(f"# {line}", flush=True))
    source.close()
    print("| nodes | first token of long prompts, s, p50 / p99 | time per token of long answers, ms, p50 / p99 | answers | failed |\n| --- | --- | --- | --- | --- |")
    print("\n".join(row.text() for row in rows))
    before, decode, prefill = rows
    print(f"first token (p50): {prefill.ttft[0] / before.ttft[0]:.2f} with 3P, {decode.ttft[0] / before.ttft[0]:.2f} with 3D of what it was; "
          f"time per token: {decode.tpot[0] / before.tpot[0]:.2f} with 3D, {prefill.tpot[0] / before.tpot[0]:.2f} with 3P; "
          f"all {answers} answers exact, none failed", flush=True)


async def etcd(options):
    """etcd is away under load: no request fails."""
    source = reference()
    world = World("etcd", netns=can_netns())
    world.pace = PACE
    async with world:
        set_pace(world, *PACE)
        traffic = Traffic(world, Items(options.seed, source), options.clients, seed=options.seed, pause=0.2)
        run = asyncio.ensure_future(traffic.run())
        await asyncio.sleep(2)
        await world.kill("etcd-0")
        began, before = time.monotonic(), sum(traffic.seen.values())
        while time.monotonic() - began < options.seconds and not traffic.wrong:
            await asyncio.sleep(0.5)
        during = sum(traffic.seen.values()) - before
        away = time.monotonic() - began
        world.start("etcd-0")
        await world.until(world.all_usable, "the members' return")
        await asyncio.sleep(2)
        traffic.over.set()
        await run
        print(f"etcd was away for {away:.0f} s: {during} requests ended meanwhile; in all {dict(traffic.seen)}", flush=True)
        assert not traffic.wrong, "\n".join(traffic.wrong[:5])
        await world.at_rest()
    source.close()


async def demo(options):
    """The shipped programs with the demo model; answers by sluice-run."""
    world = World("demo", netns=can_netns(), stub=False, kv_memory="64MiB",
                  deadlines={"progress-timeout": "10s", "token-timeout": "10s", "place-timeout": "60s"})
    world.disk, world.pace = None, None
    items = DemoItems(options.seed, options.texts)
    kinds = [kind for kind in kinds_possible(can_netns(), False) if kind not in ("hold", "slow")]
    async with world:
        schedule = Schedule(world, options.seed, kinds, options.scale, os.path.join(world.directory, "faults.log"))
        traffic = Traffic(world, items, options.clients, schedule, seed=options.seed)
        began = time.monotonic()
        await together(traffic.run(), schedule.run_until_over(), watch(options, traffic, schedule, began))
        report(options, traffic, schedule, time.monotonic() - began)
        await world.at_rest()
        assert not traffic.wrong, "\n".join(traffic.wrong[:5])


async def planted(options):
    """Bugs planted in the stub engine are found: a wrong byte in a page, by the process that fetched it; a wrong token, by the client."""
    source = reference()
    world = World("planted", prefill=1, decode=2, routers=1, netns=can_netns())
    async with world:
        items, router = Items(options.seed, source), world.nodes["router-0"]["http"]
        item = items.next(items.ids(300), 20)
        for name in world.names("prefill"):
            world.controls[name].plant(1)
        request = asyncio.ensure_future(ask(router, item))
        try:
            await world.until(lambda: world.check_processes(), "a process to end", 20)
            raise AssertionError("nobody")
        except AssertionError as error:
            assert "VIOLATION: what was fetched is wrong at row 17" in str(error), f"a wrong byte was not found: {error}"
        world.expected_ends.update(world.names("decode"))
        for name in world.names("prefill", "decode"):
            world.controls[name].plant(2)
            if not world.alive(name):
                world.start(name)
        request.cancel()
        await world.until(world.usable, "all nodes")
        outcome = await ask(router, items.next(items.ids(300), 20))
        assert outcome.verdict == "wrong", f"a wrong token was not found: {outcome.verdict}"
    source.close()
    print("1 wrong byte and 1 wrong token were planted and found", flush=True)


async def quick(options):
    """What CI runs: traffic under faults for a while and, beside it, one fault at each step."""
    cells = await asyncio.create_subprocess_exec(sys.executable, os.path.abspath(__file__), "matrix", "--faults", "kill", "--seconds", "2",
                                                 "--seed", str(options.seed), stdout=asyncio.subprocess.PIPE)
    telling = asyncio.ensure_future(cells.stdout.read())
    try:
        await planted(options)
        await volume(options)
    finally:
        if sys.exc_info()[0] and cells.returncode is None:
            cells.terminate()
        print((await telling).decode(), end="", flush=True)
        code = await cells.wait()
    assert code == 0, "a cell of the matrix"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, requests, faults, seconds, clients in (("quick", 0, 0, 45, 16), ("volume", 20000, 1000, 0, 12), ("demo", 500, 50, 0, 8)):
        sub = commands.add_parser(name)
        sub.add_argument("--requests", type=int, default=requests, help="at least so many")
        sub.add_argument("--faults", type=int, default=faults, help="at least so many")
        sub.add_argument("--seconds", type=float, default=seconds, help="instead of the two: so long")
        sub.add_argument("--clients", type=int, default=clients)
        sub.add_argument("--scale", type=float, default=0.5, help="of how long faults last, and of the pauses between them")
        sub.add_argument("--texts", type=int, default=48, help="demo: different requests")
    sub = commands.add_parser("matrix")
    sub.add_argument("--faults", default="")
    sub.add_argument("--steps", default="")
    sub.add_argument("--seconds", type=float, default=matrix_cells.SECONDS)
    sub.add_argument("--shm", action="store_true", help="all on one host: pages go by shared memory")
    sub = commands.add_parser("times")
    sub.add_argument("--whose", choices=("prefill", "decode"), default="decode")
    sub.add_argument("--lost", dest="survive", action="store_false", help="no page of the prompt survives the fault")
    sub.add_argument("--faults", default="")
    sub.add_argument("--trials", type=int, default=10)
    sub = commands.add_parser("cancel")
    sub.add_argument("--trials", type=int, default=20)
    commands.add_parser("planted")
    sub = commands.add_parser("drain")
    sub.add_argument("--streams", type=int, default=100)
    sub = commands.add_parser("scale")
    sub.add_argument("--requests", type=int, default=60, help="of each kind, at least, with each number of nodes")
    sub = commands.add_parser("etcd")
    sub.add_argument("--seconds", type=float, default=600)
    sub.add_argument("--clients", type=int, default=4)
    for sub in commands.choices.values():
        sub.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    try:
        asyncio.run(globals()[options.command](options))
    except AssertionError as error:
        print(f"FAILED: {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
