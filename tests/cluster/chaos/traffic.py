"""Clients that ask without pause, and what they saw."""

import asyncio
import collections
import random

from client import ask


class Traffic:
    """Judges each answer by what was possible: the tokens are known; an error needs that no node could serve; a broken connection that its
    router was struck."""

    def __init__(self, world, items, clients, schedule=None, count=None, seed=0, pause=0.0):
        self.world, self.items, self.schedule, self.count = world, items, schedule, count
        self.seed, self.clients, self.pause = seed, clients, pause
        self.seen, self.wrong, self.durations = collections.Counter(), [], []
        self.begun = 0
        self.over = asyncio.Event()

    def excused(self, outcome, router):
        """Its router was struck while it ran."""
        if outcome.verdict not in ("broken", "hang"):
            return False
        now = outcome.ended
        return router in self.schedule.struck or any(
            fault.name == router and fault.began <= now and fault.healed >= outcome.began - 1 for fault in self.schedule.history[-64:])

    async def client(self, index):
        source = random.Random(f"{self.seed} client {index}")
        while not self.over.is_set() and (self.count is None or self.begun < self.count) and not self.wrong:
            self.begun += 1
            await asyncio.sleep(self.pause)
            item = self.items.next()
            router = source.choice([name for name in self.world.names("router") if self.world.alive(name)])
            outcome = await ask(self.world.nodes[router]["http"], item)
            self.durations.append(outcome.ended - outcome.began)
            if outcome.verdict in ("right", "hung up"):
                self.seen[outcome.verdict] += 1
            elif self.schedule and self.excused(outcome, router):
                self.seen["router struck"] += 1
            else:
                self.seen[outcome.verdict] += 1
                self.wrong.append(f"{outcome.verdict}: {outcome.text} [{router}, {outcome.headers.get('x-sluice-prefill-node')}, "
                                  f"{outcome.headers.get('x-sluice-decode-node')}, prompt {len(item.prompt)}, seed {item.seed}, "
                                  f"{len(outcome.tokens)} of {len(item.expected)} tokens, {outcome.ended - outcome.began:.1f} s]")

    async def run(self):
        try:
            await asyncio.gather(*(self.client(index) for index in range(self.clients)))
        finally:
            self.over.set()
            if self.schedule:
                self.schedule.over.set()
