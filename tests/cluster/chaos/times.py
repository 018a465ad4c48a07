"""From a fault to the next token, and from a cancel to free pages, on an idle cluster: the deadlines' share of it, not the load's."""

import asyncio
import time

from client import ask
from faults import Fault

LENGTHS = (1000, 4000, 16000)
DECODE_TOKENS = 40
STRIKE_AT = 10  # tokens
FAULTS = ("kill", "stop", "link", "one-way-in", "one-way-out", "loss")
HEAL_AFTER = 8.0  # longer than every deadline that ends a wait here


class Trial:
    """One request, one fault on the node that works on it; `seconds`: until the next token."""

    def __init__(self, world, items, kind, length, site=None):
        self.world, self.items, self.kind, self.length, self.site = world, items, kind, length, site
        self.reached = asyncio.Event()
        self.node = None

    def on_token(self, outcome):
        self.node = outcome.headers["x-sluice-decode-node"]
        if len(outcome.tokens) >= STRIKE_AT:
            self.reached.set()

    async def victim(self):
        if self.site is None:
            await asyncio.wait_for(self.reached.wait(), 60)
            return self.node
        names = self.world.names("prefill")
        held = await self.world.until(lambda: next((name for name in names if self.world.controls[name].held), None), "a prefill node to be held")
        for name in names:
            if name != held:
                self.world.controls[name].disarm()
        return held

    async def run(self):
        world, item = self.world, self.items.next(self.items.ids(self.length), DECODE_TOKENS)
        item.stream, item.hang_up_at, item.ignore_eos = True, None, True
        item.expected = self.items.reference.tokens(item)
        if self.site:
            for name in world.names("prefill"):
                world.controls[name].arm(*self.site)
        router = world.nodes[world.names("router")[0]]["http"]
        request = asyncio.ensure_future(ask(router, item, self.on_token))
        name = await self.victim()
        kind, _, direction = self.kind.partition("-way-")
        fault = Fault(world, kind + ("-way" if direction else ""), name, HEAL_AFTER, None, direction != "out")
        await fault.begin()
        if self.site and self.kind != "kill":
            world.controls[name].go()
        await asyncio.wait({request}, timeout=HEAL_AFTER)
        await fault.heal()
        outcome = await request
        assert outcome.verdict == "right", f"{self.kind} on {name}: {outcome.verdict}: {outcome.text}"
        await world.until(world.all_usable, f"{name} after {self.kind}")
        await world.until(lambda: self.rests(), "rest")
        return self.longest_wait(outcome, fault.began)

    async def rests(self):
        return not await self.world.busy()

    @staticmethod
    def longest_wait(outcome, struck):
        """Tokens that were on their way may still come after the fault: the wait ends with the longest gap."""
        before, gap, end = struck, 0.0, struck
        for at in outcome.times:
            if at >= struck:
                if at - before > gap:
                    gap, end = at - before, at
                before = at
        return end - struck


async def measure(world, items, trials, site, kinds, lengths, tell):
    """[(kind, length, [seconds])]."""
    rows = []
    for kind in kinds:
        for length in lengths:
            seconds = []
            for _ in range(trials):
                seconds.append(await Trial(world, items, kind, length, site).run())
            rows.append((kind, length, seconds))
            tell(f"{kind} {length}: {' '.join(f'{value:.2f}' for value in sorted(seconds))}")
    return rows


async def measure_cancel(world, items, length, while_decoding):
    """Seconds from the client's hanging up to the pages' end on (prefill, decode)."""
    item = items.next(items.ids(length), 200)
    item.stream, item.ignore_eos = True, True
    item.expected = items.reference.tokens(item)
    router = world.nodes[world.names("router")[0]]["http"]
    reached = asyncio.Event()
    request = asyncio.ensure_future(ask(router, item, lambda outcome: reached.set()))
    if while_decoding:
        await reached.wait()
    else:
        for name in world.names("prefill"):
            world.controls[name].arm("commit", 1)
        held = await world.until(lambda: next((name for name in world.names("prefill") if world.controls[name].held), None), "a chunk")
        for name in world.names("prefill"):
            world.controls[name].disarm()
        world.controls[held].go()
    hung_up = time.monotonic()
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)

    async def free():
        return not await world.busy()
    await world.until(free, "free pages")
    closed = {role: max(world.controls[name].closed_at for name in world.names(role)) for role in ("prefill", "decode")}
    return tuple(max(0.0, closed[role] - hung_up) for role in ("prefill", "decode"))
