"""Faults: each is applied, lasts, and is healed. A fault is drawn from a seed (Schedule), or asked for by the matrix."""

import asyncio
import json
import os
import random
import signal
import subprocess
import time


class Fault:
    """What goes wrong with one process. `begin` and `heal` are quick; between them it lasts."""

    def __init__(self, world, kind, name, seconds, peer=None, inward=True, site=None):
        self.world, self.kind, self.name, self.seconds = world, kind, name, seconds
        self.peer, self.inward, self.site = peer, inward, site
        self.began = self.healed = None

    def __str__(self):
        parts = [self.kind, self.name, f"{self.seconds:.1f} s"]
        if self.kind == "one-way":
            parts.append("in" if self.inward else "out")
        return " ".join(parts + [str(text) for text in (self.peer, self.site) if text])

    async def begin(self):
        self.began = time.monotonic()
        await getattr(self, "begin_" + self.kind.replace("-", "_"))()

    async def heal(self):
        await getattr(self, "heal_" + self.kind.replace("-", "_"))()
        self.healed = time.monotonic()

    async def run(self):
        await self.begin()
        await asyncio.sleep(self.seconds)
        await self.heal()

    # ---- the process

    async def begin_kill(self):
        await self.world.kill(self.name)

    async def heal_kill(self):
        self.world.start(self.name)

    async def begin_stop(self):
        self.world.send(self.name, signal.SIGSTOP)

    async def heal_stop(self):
        self.world.send(self.name, signal.SIGCONT)

    async def begin_hold(self):
        """A thread of it stands still at a step of the protocol."""
        self.world.controls[self.name].arm(self.site)

    async def heal_hold(self):
        self.world.controls[self.name].disarm()

    async def begin_slow(self):
        self.world.controls[self.name].pace(200000, 100000)

    async def heal_slow(self):
        self.world.controls[self.name].pace(*self.world.pace)

    async def begin_drain(self):
        """By a signal: etcd, which sluicectl would ask, may be away."""
        self.world.expected_ends.add(self.name)
        self.world.send(self.name, signal.SIGTERM)

    async def heal_drain(self):
        await self.world.until(lambda: not self.world.alive(self.name), f"{self.name} to leave")
        assert self.world.processes[self.name].returncode == 0, f"{self.name} left with {self.world.processes[self.name].returncode}"
        self.world.start(self.name)

    async def begin_reset(self):
        """The connections of routers to it break, now and again."""
        self.world.reset(self.name)

    async def heal_reset(self):
        self.world.reset(self.name)

    # ---- its link

    async def begin_link(self):
        self.world.link(self.name, False)

    async def heal_link(self):
        self.world.link(self.name, True)

    async def begin_loss(self):
        self.world.drop(self.name, {"input": "numgen random mod 100 < 30", "output": "numgen random mod 100 < 30"})

    async def begin_one_way(self):
        peers = [self.peer] if isinstance(self.peer, str) else self.peer or []
        addresses = ", ".join(self.world.address(peer) for peer in peers)
        whom = f"ip {'saddr' if self.inward else 'daddr'} {{ {addresses} }}" if peers else ""
        self.world.drop(self.name, {"input" if self.inward else "output": whom})

    async def begin_partition(self):
        peer = self.world.address(self.peer)
        self.world.drop(self.name, {"input": f"ip saddr {peer}", "output": f"ip daddr {peer}"})

    async def heal_loss(self):
        self.world.undrop(self.name)

    heal_one_way = heal_partition = heal_loss

    async def begin_delay(self):
        self.world.delay(self.name, 0.2)

    async def heal_delay(self):
        self.world.delay(self.name, 0)

    # ---- its disk

    async def begin_disk(self):
        """The second tier's file system has no byte left."""
        with open(os.path.join(self.world.disk, "ballast"), "wb") as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
                    file.flush()
            except OSError:
                pass

    async def heal_disk(self):
        os.remove(os.path.join(self.world.disk, "ballast"))


HOLDS = {"prefill": ("ticket", "announce", "commit", "final", "cancel", "lease", "step"),
         "decode": ("admitted", "fetch", "first", "step", "last", "cancel", "lease")}


class Schedule:
    """Faults from a seed: at any time at most one decode node, one prefill node, one router and etcd are struck, so that a request can always
    be served. Replays as far as real processes do: the same faults in the same order, at the same distance."""

    def __init__(self, world, seed, kinds, scale=1.0, log=None):
        self.world, self.seed, self.kinds, self.scale = world, seed, kinds, scale
        self.history, self.struck = [], set()
        self.over = asyncio.Event()
        self.log = open(log, "w") if log else None

    def lanes(self):
        return [("decode", self.world.names("decode")), ("prefill", self.world.names("prefill")),
                ("other", self.world.names("router")[1:] + self.world.names("etcd"))]

    def draw(self, source, lane, names):
        name = source.choice(names)
        role = self.world.nodes[name]["role"]
        kind = source.choice([kind for kind in self.kinds if self.possible(kind, name)])
        seconds = source.choice((0.2, 1.0, 2.0, 4.5)) * self.scale
        peer = None
        if kind in ("one-way", "partition"):
            others = self.world.names("decode" if role == "prefill" else "prefill")
            peer = source.choice(others) if kind == "partition" else source.choice(others + [None])
        site = source.choice(HOLDS[role]) if kind == "hold" else None
        return Fault(self.world, kind, name, seconds, peer, source.random() < 0.5, site)

    def possible(self, kind, name):
        if self.world.nodes[name]["role"] in ("router", "etcd"):
            return kind in ("kill", "stop")
        return kind != "disk" or name == self.world.disk_node

    async def lane(self, lane, names):
        source = random.Random(f"{self.seed} {lane}")
        while not self.over.is_set():
            fault = self.draw(source, lane, names)
            pause = source.uniform(0.1, 1.0) * self.scale
            self.struck.add(fault.name)
            await fault.run()
            self.history.append(fault)
            if self.log:
                self.log.write(json.dumps({"lane": lane, "fault": str(fault), "began": fault.began, "healed": fault.healed}) + "\n")
                self.log.flush()
            # A lane goes on once its own process serves again: what another lane struck is not waited for.
            await self.world.until(lambda: self.serves(fault.name), f"{fault.name} to serve after: {fault} (seed {self.seed})")
            self.struck.discard(fault.name)
            await asyncio.sleep(pause)

    async def serves(self, name):
        node = self.world.nodes[name]
        if node["role"] in ("etcd", "router"):
            return await self.world.http(node["http"] or node["control"], "/health")
        return await self.world.usable(*(self.struck - {name}))

    async def run_until_over(self):
        await asyncio.gather(*(self.lane(lane, names) for lane, names in self.lanes() if names))


def mount_tiny(path, size):
    """A tmpfs; False where this may not be done."""
    os.makedirs(path, exist_ok=True)
    return subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True).returncode == 0


def unmount(path):
    subprocess.run(["umount", path], capture_output=True)
