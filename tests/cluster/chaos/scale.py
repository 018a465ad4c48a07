"""Prefill and decode nodes scaled apart while clients are served: what each of them is worth to whom.

Two kinds of clients ask without pause, the same number of each all the time. Readers: a long prompt, a few tokens; they queue at the prefill nodes. Writers: a short
prompt, a long answer; they share the decode nodes' batches. The stub engine sleeps its time, so that nodes add up whatever this machine's cores are.
"""

import asyncio
import collections
import os
import sys
import time

from client import Item, ask
from control import Control

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from lib import Cluster  # noqa: E402

PACE = (10000, 2000000)  # of all nodes: microseconds a step, nanoseconds a row: a prompt of 600 tokens takes 1.2 s, a step of 24 sequences 58 ms
KINDS = {"reader": (6, 600, 4), "writer": (24, 20, 150)}  # clients, tokens of the prompt, of the answer
PHASES = ((1, 1), (1, 3), (3, 1))  # prefill, decode nodes
PATIENT = " ".join(f"--{name} 60s" for name in ("progress-timeout", "token-timeout", "admit-timeout", "place-timeout", "queue-timeout"))


class Sample:
    """An answer: when it began, seconds to its first token, seconds per token behind that."""

    def __init__(self, kind, outcome):
        self.kind, self.began = kind, outcome.began
        self.ttft = outcome.times[0] - outcome.began
        self.tpot = (outcome.times[-1] - outcome.times[0]) / (len(outcome.times) - 1)


class Load:
    """Clients of both kinds until the end. Whatever is no exact answer is a failure."""

    def __init__(self, address, items):
        self.address, self.items = address, items
        self.samples, self.failed, self.over = [], [], False
        self.clients = [asyncio.ensure_future(self.ask(kind)) for kind, (clients, _, _) in KINDS.items() for _ in range(clients)]

    async def ask(self, kind):
        _, prompt_tokens, answer_tokens = KINDS[kind]
        while not self.over:
            item = Item(self.items.ids(prompt_tokens), answer_tokens)
            item.expected = self.items.reference.tokens(item)
            outcome = await ask(self.address, item)
            if outcome.verdict == "right":
                self.samples.append(Sample(kind, outcome))
            else:
                self.failed.append(f"{kind}: {outcome.verdict}: {outcome.text}")

    def since(self, began):
        return [sample for sample in self.samples if sample.began >= began]

    async def until(self, condition, what, seconds):
        """Polls; a failure ends it at once."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert not self.failed, f"{len(self.failed)} requests failed: {self.failed[0]}"
            assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
            await asyncio.sleep(0.02)

    async def end(self):
        self.over = True
        await asyncio.gather(*self.clients)
        assert not self.failed, f"{len(self.failed)} requests failed: {self.failed[0]}"


def usable(cluster):
    values = cluster.metrics("router-0")
    return tuple(values.get(f'sluice_usable_nodes{{role="{role}"}}', 0) for role in ("prefill", "decode"))


async def apply(cluster, load, prefill, decode):
    """`sluicectl scale apply`, and until its router uses just those nodes; the nodes that have left."""
    before = {node["name"] for node in cluster.refresh()["nodes"] if node["alive"]}
    done = await asyncio.to_thread(cluster.ctl_json, "scale", "apply", "--prefill", str(prefill), "--decode", str(decode))
    assert (done["prefill"], done["decode"]) == (prefill, decode), done
    await load.until(lambda: usable(cluster) == (prefill, decode), f"{prefill} prefill and {decode} decode nodes to be used", 60)
    await load.until(lambda: sum(node["alive"] and node["role"] in ("prefill", "decode") for node in cluster.refresh()["nodes"]) == prefill + decode,
                     "the nodes too many to end", 60)
    left = before - {node["name"] for node in cluster.state["nodes"] if node["alive"]}
    for name in left:
        assert "leaving: nothing is left" in cluster.log(name), f"{name} left with requests:\n{cluster.log(name)[-1000:]}"
    return left


async def measure(load, requests):
    """The answers to requests that began from now on: so many of each kind."""
    began = time.monotonic()

    def enough():
        counts = collections.Counter(sample.kind for sample in load.since(began))
        return all(counts[kind] >= requests for kind in KINDS)
    await load.until(enough, f"{requests} answers of each kind", 20 * requests + 60)
    return load.since(began), time.monotonic() - began


def percentile(values, percent):
    return sorted(values)[len(values) * percent // 100]


class Row:
    """What clients saw of one phase."""

    def __init__(self, nodes, samples, seconds):
        self.nodes, self.count, self.seconds = nodes, len(samples), seconds
        ttft = [sample.ttft for sample in samples if sample.kind == "reader"]
        tpot = [1e3 * sample.tpot for sample in samples if sample.kind == "writer"]
        self.ttft, self.tpot = ([percentile(values, percent) for percent in (50, 99)] for values in (ttft, tpot))

    def text(self):
        return (f"| {self.nodes[0]}P{self.nodes[1]}D | {self.ttft[0]:.2f} / {self.ttft[1]:.2f} | {self.tpot[0]:.0f} / {self.tpot[1]:.0f} "
                f"| {self.count} in {self.seconds:.0f} s | 0 |")


async def phases(cluster, items, requests, tell):
    """Raises AssertionError; the rows of the table."""
    load, rows = Load(cluster.state["http"], items), []
    try:
        for prefill, decode in PHASES:
            began, before = time.monotonic(), len(load.samples)
            left = await apply(cluster, load, prefill, decode)
            tell(f"{prefill}P{decode}D {time.monotonic() - began:.1f} s after `scale apply`: {len(load.samples) - before} answers meanwhile, "
                 f"drained: {', '.join(sorted(left)) or 'none'}")
            rows.append(Row((prefill, decode), *await measure(load, requests)))
        await load.end()
    finally:
        for client in load.clients:
            client.cancel()
    return rows, len(load.samples)


async def scale(items, stubs, directory, requests, tell):
    """1P1D -> 1P3D -> 3P1D by `scale apply` and the local cluster's hook; the rows of the table and the answers in all."""
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, "control")
    Control(path).pace(*PACE)
    # All processes have it from here, those too that the router's hook starts.
    os.environ.update(SLUICE_BIN=stubs, SLUICE_CHAOS=path)
    options = ("--threads", 1, "--kv-memory", "192MiB", "--lease", "2s", "--node-args", "--layer-group 2 --chunk-tokens 256 --drain-timeout 60s",
               "--decode-args", "--mtp-depth 0", "--router-args", PATIENT)
    with Cluster(os.path.join(os.path.basename(directory), "cluster"), *options) as cluster:
        rows, answers = await phases(cluster, items, requests, tell)
        cluster.wait_at_rest()
    return rows, answers
