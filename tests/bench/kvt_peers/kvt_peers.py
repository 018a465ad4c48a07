#!/usr/bin/env python3
"""kvtransfer beside NIXL and Mooncake's transfer engine: equal pieces, cold buffers, turn by turn.

    make all && tests/bench/kvt_peers/kvt_peers.py [--transport shm,tcp] [--kv-transport ucx|tcp] [--pieces 8192,43008,403456]
        [--work build/kvt_peers]

The first run installs both peers from PyPI into a virtual environment under --work; nothing of it is
committed. Each system is two processes of this machine with --memory bytes each. Turn by turn every
system moves the same number of pieces, each turn from memory that no cache holds, the others being
stopped meanwhile (NIXL's progress thread never sleeps). The peers' pieces are paired in a shuffled
order, as pages are: neighbours would be merged into one. Per system and piece size: median Gbit/s,
and the median over turns of their seconds over ours. NIXL reads and writes; the better counts, for
Mooncake too, which has no shared memory for host buffers: its tcp stands in both tables.
"""
import argparse
import os
import random
import signal
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(HERE)))
# The packages' names say CUDA; nixl-cu12 loads without it, and wants torch only for tensors.
PACKAGES = ("numpy",)
PEERS = ("nixl-cu12==1.5.1", "mooncake-transfer-engine-non-cuda==0.3.13.post1")


def install(work):
    python = os.path.join(work, "venv/bin/python")
    done = os.path.join(work, "done")
    if not os.path.exists(done):
        os.makedirs(work, exist_ok=True)
        subprocess.run([sys.executable, "-m", "venv", os.path.join(work, "venv")], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", *PEERS], check=True)
        open(done, "w", encoding="utf-8").close()
    return python


class System:
    """One system's processes: a line in, its seconds out."""

    def __init__(self, name, command, kinds, environment):
        self.name, self.kinds, self.command = name, kinds, command
        log = open(os.path.join(environment["KVT_PEERS_WORK"], f"{name}.log"), "w", encoding="utf-8")
        self.log = log.name
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment,
                                        process_group=0)
        log.close()

    def signal(self, which):
        os.killpg(self.process.pid, which)

    def turn(self, kind):
        self.process.stdin.write(kind + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            try:
                return float(line)
            except ValueError:
                continue  # a peer's own chatter
        raise RuntimeError(f"{self.name} ended: see {self.log}")

    def stop(self):
        try:
            self.signal(signal.SIGCONT)
            self.process.stdin.close()
            self.process.wait(timeout=10)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            pass
        try:
            self.signal(signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


def measure(options, python, transport, piece):
    count = max(1, min(2048, options.turn // piece))
    pages = max(2 * count, options.memory // piece) // count * count
    tls = "shm,tcp,self" if transport == "shm" else "tcp,self"
    environment = dict(os.environ, UCX_TLS=tls, KVT_PEERS_WORK=os.path.abspath(options.work))
    peer = [python, os.path.join(HERE, "peer.py"), str(pages), str(piece), str(count), str(options.seed)]
    perf = [options.program, "local", "--steps", "--transport", transport, "--kv-transport", options.kv_transport, "--pages", str(pages),
            "--piece", str(piece), "--turn", str(count * piece)]
    commands = {"kvtransfer": (perf, ("plain", "checked")), "nixl": (peer + ["nixl"], ("read", "write")),
                "mooncake": (peer + ["mooncake"], ("read", "write"))}
    systems = []
    seconds = {}
    try:
        for name in ["kvtransfer"] + options.only.split(","):
            command, kinds = commands[name]
            system = System(name, command, kinds, environment)
            for kind in kinds:  # warms up: connections, pages
                system.turn(kind)
            system.signal(signal.SIGSTOP)
            systems.append(system)
        turns = [(system, kind) for system in systems for kind in system.kinds]
        for i in range(options.rounds):
            for system, kind in turns[i % len(turns):] + turns[:i % len(turns)]:
                system.signal(signal.SIGCONT)
                seconds.setdefault((system.name, kind), []).append(system.turn(kind))
                system.signal(signal.SIGSTOP)
    finally:
        for system in systems:
            system.stop()
    return count, seconds


def rate(bits, values):
    return f"{bits / statistics.median(values):6.2f} ({bits / min(values):6.2f})"


def report(transport, piece, count, seconds):
    bits = count * piece * 8 / 1e9
    ours = seconds["kvtransfer", "plain"]
    print(f"{transport}, {count} pieces of {piece} bytes a turn, {len(ours)} turns; Gbit/s, median (best)")
    print(f"  kvtransfer          {rate(bits, ours)}")
    print(f"  kvtransfer, sums    {rate(bits, seconds['kvtransfer', 'checked'])}")
    for name in ("nixl", "mooncake"):
        kinds = {kind: values for (who, kind), values in seconds.items() if who == name}
        for kind, values in kinds.items():
            print(f"  {name + ' ' + kind:19} {rate(bits, values)}")
        if kinds:
            better = min(kinds, key=lambda kind: statistics.median(kinds[kind]))
            ratio = statistics.median(b / a for a, b in zip(ours, kinds[better]))
            checked = statistics.median(b / a for a, b in zip(seconds["kvtransfer", "checked"], kinds[better]))
            print(f"  ratio to {name} {better}: {ratio:.2f}, with sums {checked:.2f}; best to best {min(kinds[better]) / min(ours):.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transport", default="shm,tcp")
    parser.add_argument("--kv-transport", default="ucx", choices=("ucx", "tcp"), help="kvtransfer's: UCX, or plain tcp sockets")
    parser.add_argument("--pieces", default="4096,8192,43008,403456")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--turn", type=int, default=16 << 20, help="bytes of a turn (at most 2,048 pieces)")
    parser.add_argument("--memory", type=int, default=256 << 20, help="bytes of each process")
    parser.add_argument("--only", default="nixl,mooncake")
    parser.add_argument("--program", default=os.path.join(ROOT, "build/bin/kvt-perf"))
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--work", default=os.path.join(ROOT, "build/kvt_peers"))
    options = parser.parse_args()
    python = install(options.work)
    for transport in options.transport.split(","):
        for piece in map(int, options.pieces.split(",")):
            count, seconds = measure(options, python, transport, piece)
            report(transport, piece, count, seconds)


if __name__ == "__main__":
    main()
