"""Either peer of kvt_peers.py: starts its other process, then a turn for each line (read, write).

Run by kvt_peers.py in its virtual environment: peer.py PAGES PIECE COUNT SEED nixl|mooncake
"""
import ctypes
import mmap
import os
import random
import subprocess
import sys
import time

import numpy

PAGES, PIECE, COUNT, SEED = map(int, sys.argv[1:5])


def memory(fill):
    """(address, array): its own pages, all of them there."""
    area = numpy.frombuffer(mmap.mmap(-1, PAGES * PIECE), dtype=numpy.uint8)
    area[:] = numpy.random.default_rng(SEED).integers(0, 256, len(area), dtype=numpy.uint8) if fill else 0x5a
    return area.ctypes.data, area


def turns():
    """Index pairs (ours, theirs) of one turn after the other; equal on no two neighbours."""
    first = 0
    dice = random.Random(SEED)
    while True:
        here, there = list(range(first, first + COUNT)), list(range(first, first + COUNT))
        dice.shuffle(here)
        dice.shuffle(there)
        yield here, there
        first = first + COUNT if first + 2 * COUNT <= PAGES else 0


class Nixl:
    """The pages' target answers by its progress thread; we poll, and make progress by polling."""

    @staticmethod
    def agent(name, thread):
        from nixl_cu12._api import nixl_agent, nixl_agent_config
        return nixl_agent(name, nixl_agent_config(enable_prog_thread=thread, backends=["UCX"]))

    @staticmethod
    def pages(address):
        return numpy.array([(address + i * PIECE, PIECE, 0) for i in range(PAGES)], dtype=numpy.uint64)

    @classmethod
    def target(cls, address):
        agent = cls.agent("target", True)
        agent.register_memory([(address, PAGES * PIECE, 0, "")], "DRAM")
        print(agent.get_agent_metadata().hex(), address, flush=True)
        sys.stdin.read()

    def __init__(self, address, line):
        metadata, there = line.split()
        self.one = self.agent("initiator", False)
        self.one.register_memory([(address, PAGES * PIECE, 0, "")], "DRAM")
        name = self.one.add_remote_agent(bytes.fromhex(metadata))
        self.here = self.one.prep_xfer_dlist("NIXL_INIT_AGENT", self.pages(address), "DRAM")
        self.there = self.one.prep_xfer_dlist(name, self.pages(int(there)), "DRAM")

    def turn(self, kind, here, there):
        began = time.perf_counter()
        handle = self.one.make_prepped_xfer(kind.upper(), self.here, here, self.there, there)
        state = self.one.transfer(handle)
        while state == "PROC":
            state = self.one.check_xfer_state(handle)
        seconds = time.perf_counter() - began
        if state != "DONE":
            sys.exit(f"nixl: {state}")
        self.one.release_xfer_handle(handle)
        return seconds


class Mooncake:
    BATCH = 512  # more at once: "TCP lane queue-full rejection", and the call fails

    @staticmethod
    def engine():
        from mooncake.engine import TransferEngine
        engine = TransferEngine()
        if engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") != 0:
            sys.exit("mooncake: initialize failed")
        return engine

    @classmethod
    def target(cls, address):
        engine = cls.engine()
        if engine.register_memory(address, PAGES * PIECE) != 0:
            sys.exit("mooncake: register_memory failed")
        print(f"127.0.0.1:{engine.get_rpc_port()}", address, flush=True)
        sys.stdin.read()

    def __init__(self, address, line):
        self.name, there = line.split()
        self.address, self.their_address = address, int(there)
        self.one = self.engine()
        if self.one.register_memory(address, PAGES * PIECE) != 0:
            sys.exit("mooncake: register_memory failed")

    def turn(self, kind, here, there):
        local = [self.address + i * PIECE for i in here]
        remote = [self.their_address + i * PIECE for i in there]
        sizes = [PIECE] * len(here)
        call = self.one.batch_transfer_sync_read if kind == "read" else self.one.batch_transfer_sync_write
        began = time.perf_counter()
        for at in range(0, len(local), self.BATCH):
            until = at + self.BATCH
            failed = call(self.name, local[at:until], remote[at:until], sizes[at:until])
            if failed != 0:
                sys.exit(f"mooncake: {kind} returned {failed}")
        seconds = time.perf_counter() - began
        return seconds


def check(kind, here, there, area):
    """The first turn of each kind: what was read is what the target was filled with."""
    if kind != "read":
        return
    expected = numpy.random.default_rng(SEED).integers(0, 256, PAGES * PIECE, dtype=numpy.uint8)
    for i, j in zip(here[:50], there[:50]):
        if not numpy.array_equal(area[i * PIECE:(i + 1) * PIECE], expected[j * PIECE:(j + 1) * PIECE]):
            sys.exit(f"piece {i} is wrong")


def main():
    peer = {"nixl": Nixl, "mooncake": Mooncake}[sys.argv[5]]
    if len(sys.argv) == 7:
        address, kept = memory(True)
        peer.target(address)
        os._exit(0)
    ctypes.CDLL(None).prctl(1, 9)  # a parent that is killed takes us along
    other = subprocess.Popen([sys.executable, *sys.argv, "target"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    line = ""
    while len(line.split()) != 2 or not line.split()[1].isdigit():
        line = other.stdout.readline() or sys.exit("the target did not start")
    address, area = memory(False)
    one = peer(address, line)
    checked = False
    for (here, there), kind in zip(turns(), sys.stdin):
        seconds = one.turn(kind.strip(), here, there)
        if not checked:
            check(kind.strip(), here, there, area)
            checked = True
        print(f"{seconds:.9f}", flush=True)
    other.kill()
    os._exit(0)


main()
