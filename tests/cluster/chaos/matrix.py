"""Each step of the protocol with each fault: a process is held exactly there, the fault strikes it, then it goes on (or not)."""

import asyncio
import time

from client import Item, ask
from faults import Fault

PROMPT = 1000  # tokens: 4 chunks, 16 pages
PIECES = 16 * 4
TOKENS = 60
LATE_TOKENS = 200  # where the step comes after the first token: it must not be over before

# step: (role of the process that is struck, site, which hit)
STEPS = {
    "admitted": ("decode", "admitted", 1),
    "ticket out": ("prefill", "ticket", 1),
    "first announce": ("prefill", "announce", 1),
    "mid fetch": ("decode", "fetch", PIECES // 2),
    "last fetch": ("decode", "fetch", PIECES),
    "chunk commit": ("prefill", "commit", 2),
    "final commit": ("prefill", "final", 1),
    "first token": ("decode", "first", 1),
    "mid stream": ("decode", "step", 12),
    "last token": ("decode", "last", 1),
    "cancel": ("decode", "cancel", 1),
    "drain": ("decode", "drain", 1),
    "lease renewal": ("decode", "lease", 1),
    "re-attach": ("decode", "attach", 1),
}
# Between prefill and decode nodes alone: what only they exchange.
BETWEEN_NODES = ("first announce", "mid fetch", "last fetch", "chunk commit", "final commit")
FAULTS = ("kill", "stop", "link", "loss", "delay", "one-way")
SECONDS = 10.0


class Cell:
    """One step and one fault; `run` raises AssertionError."""

    def __init__(self, world, items, step, kind, seconds, inward=True):
        self.world, self.items, self.step, self.kind, self.seconds, self.inward = world, items, step, kind, seconds, inward
        self.role, self.site, self.nth = STEPS[step]
        self.victim = None
        self.first = asyncio.Event()

    def __str__(self):
        direction = (" in" if self.inward else " out") if self.kind == "one-way" else ""
        return f"{self.step} x {self.kind}{direction}"

    def item(self, length, tokens, stream=True):
        made = self.items.next(self.items.ids(length), tokens)
        made.ignore_eos, made.stream, made.hang_up_at = True, stream, None
        made.expected = self.items.reference.tokens(made)
        return made

    def router(self):
        return self.world.nodes[self.world.names("router")[0]]["http"]

    def held(self):
        return next((name for name in self.world.names(self.role) if self.world.controls[name].held), None)

    def on_token(self, outcome):
        self.first.set()
        self.node = outcome.headers["x-sluice-decode-node"]

    async def bring_about(self):
        """What leads to the step: one request, and what must happen to it."""
        late = self.step in ("drain", "lease renewal", "mid stream", "re-attach")
        main = self.item(PROMPT, LATE_TOKENS if late else TOKENS)
        if self.step == "cancel":
            main.hang_up_at = 10
        if not late:
            self.arm(self.world.names(self.role))
        self.main = asyncio.ensure_future(ask(self.router(), main, self.on_token))
        if late:
            await asyncio.wait_for(self.first.wait(), 30)
            self.arm([self.node])
        if self.step == "drain":
            self.world.expected_ends.add(self.node)
            self.drain = asyncio.ensure_future(self.world.in_thread(self.world.ctl, "drain", self.node, "--call-timeout", "1s"))
        if self.step == "re-attach":
            self.world.reset(self.node)
        self.victim = await self.world.until(self.held, f"{self} to be held", 30)
        for name in self.world.names(self.role):
            if name != self.victim:
                self.world.controls[name].disarm()

    def arm(self, names):
        for name in names:
            self.world.controls[name].arm(self.site, self.nth)

    def fault(self):
        peer = None
        if self.kind == "one-way" and self.step in BETWEEN_NODES:
            peer = self.world.names("decode" if self.role == "prefill" else "prefill")
        return Fault(self.world, self.kind, self.victim, self.seconds, peer, self.inward)

    async def strike(self):
        fault = self.fault()
        await fault.begin()
        if self.kind != "kill":
            self.world.controls[self.victim].go()
        others = [asyncio.ensure_future(ask(self.router(), self.item(150, 20, stream))) for stream in (True, False, True)]
        await asyncio.sleep(self.seconds if self.kind != "kill" else 0.2)
        if self.kind != "kill":
            await fault.heal()
        return fault, others

    async def come_back(self):
        """The victim serves again, by itself or because it is started."""
        if self.step == "drain":
            if self.kind != "kill":
                await self.world.until(lambda: not self.world.alive(self.victim), f"{self.victim} to leave after {self}", 60)
                code = self.world.processes[self.victim].returncode
                assert code == 0, f"{self.victim} left with {code}"
            await self.drain
        if not self.world.alive(self.victim):
            self.world.start(self.victim)

    async def run(self):
        """Seconds of the main request."""
        await self.world.at_rest()
        await self.bring_about()
        struck = time.monotonic()
        fault, others = await self.strike()
        main = await self.main
        outcomes = await asyncio.gather(*others)
        await self.come_back()
        wanted = "hung up" if self.step == "cancel" else "right"
        assert main.verdict == wanted, f"the request: {main.verdict}: {main.text}"
        for outcome in outcomes:
            assert outcome.verdict == "right", f"a request during the fault: {outcome.verdict}: {outcome.text}"
        await self.world.at_rest()
        return max(0.0, main.ended - struck)


async def run_cells(world, items, steps, faults, seconds, tell=print):
    """(green, [(cell, what was wrong)])."""
    green, red = 0, []
    for step in steps:
        for kind in faults:
            for inward in (True, False) if kind == "one-way" else (True,):
                cell = Cell(world, items, step, kind, seconds, inward)
                try:
                    took = await cell.run()
                    green += 1
                    tell(f"ok      {cell}: {cell.victim}; the request ended {took:.1f} s after the fault began")
                except AssertionError as error:
                    red.append((cell, error))
                    tell(f"FAILED  {cell}: {cell.victim}: {error}")
                    return green, red
    return green, red
