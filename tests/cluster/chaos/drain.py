"""A decode node that drains with many streams running: all of them go on at another one, and no client sees it."""

import asyncio
import json

from client import Item, ask

# The pace of the decode nodes: until all streams run; while they are moved, about one a step; when they only have to end.
FILL, MOVE, END = (400000, 4000), (30000, 4000), (1500, 4000)
TOKENS = 250
MORE = 4  # requests that come while the node drains


def set_pace(world, pace):
    for name in world.names("decode"):
        world.controls[name].pace(*pace)


def stream(items, length):
    item = Item(items.ids(length), TOKENS, float(length % 2), items.source.randrange(1 << 32))
    item.expected = items.reference.tokens(item)
    return item


async def fill(world, items, victim, others, count):
    """count streams run on the victim; the tasks that read them, and what they have read so far."""
    began, tasks = {}, []

    def on_token(outcome):
        began[outcome.item] = outcome
    for name in others:
        assert world.ctl("cordon", name).returncode == 0, name
    await world.until(lambda: world.usable(*others), "the others to be cordoned")
    for i in range(count):
        tasks.append(asyncio.ensure_future(ask(world.nodes["router-0"]["http"], stream(items, 20 + i), on_token)))
    await world.until(lambda: len(began) == count or any(task.done() for task in tasks), f"a token of {count} streams")
    assert not any(task.done() for task in tasks), f"a stream has ended early: {next(t.result().text for t in tasks if t.done())}"
    nodes = {outcome.headers["x-sluice-decode-node"] for outcome in began.values()}
    assert nodes == {victim}, nodes
    for name in others:
        assert world.ctl("uncordon", name).returncode == 0, name
    await world.until(world.usable, "all nodes to be used")
    return tasks


async def drain_with_streams(world, items, count):
    """Raises AssertionError; returns what `sluicectl drain` said and what the router counted."""
    victim, *others = world.names("decode")
    set_pace(world, FILL)
    tasks = await fill(world, items, victim, others, count)
    running = (await world.metrics(victim))["sluice_running_requests"]
    assert running == count, f"{running:.0f} requests run on {victim}"
    world.expected_ends.add(victim)
    set_pace(world, MOVE)
    drain = asyncio.ensure_future(world.in_thread(world.ctl, "drain", victim, "--json"))
    tasks += [asyncio.ensure_future(ask(world.nodes["router-0"]["http"], stream(items, 200))) for _ in range(MORE)]
    result = await drain
    assert result.returncode == 0 and json.loads(result.stdout)["unfinished"] == 0, (result.stdout, result.stderr)
    await world.until(lambda: not world.alive(victim), f"the end of {victim}")
    assert world.processes[victim].returncode == 0, world.processes[victim].returncode
    set_pace(world, END)
    outcomes = await asyncio.gather(*tasks)
    broken = [f"{outcome.verdict}: {outcome.text}" for outcome in outcomes if outcome.verdict != "right"]
    assert not broken, f"{len(broken)} of {len(tasks)} streams: {broken[0]}"
    moved = (await world.metrics("router-0"))['sluice_request_migrations_total{reason="drained"}']
    assert moved > 0, "no stream was moved"
    world.start(victim)
    await world.at_rest()
    return moved
