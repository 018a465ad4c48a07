"""Hours of mixed traffic: random requests, many of them hung up, on a cache that is too small for all of them. Every answer equals one
process's, memory stays flat, and nothing is held at the end. SLUICE_SOAK_MINUTES says how long (default 2); SLUICE_SOAK_SEED which traffic.
"""

import collections
import json
import os
import random
import statistics
import tempfile
import threading
import time

from lib import PATIENCE, REFERENCE, ROOT, Cluster, book_text, needle_prompt, tokenize

MINUTES = float(os.environ.get("SLUICE_SOAK_MINUTES", "2"))
SEED = int(os.environ.get("SLUICE_SOAK_SEED", "1"))
CLIENTS = 16
ITEMS = 48
SAMPLE_SECONDS = 2.0
GROWTH_MAX = 1.05  # median memory of the last third of the run over that of the middle third
GROWTH_FREE_MB = {"heap": 1, "resident": 8}  # below this a growth says nothing
# The address sanitizer's allocator keeps what is freed, in pages that it touches for the first time for hours:
# resident memory says nothing there, what is held does.
SANITIZED = "ASAN_OPTIONS" in os.environ
SCHEMA = {"type": "object", "additionalProperties": False, "required": ["name", "age"], "properties": {
    "name": {"type": "string", "maxLength": 24}, "age": {"type": "integer", "minimum": 0, "maximum": 120}}}
FORMS = [
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
    {"structured_outputs": {"regex": "[a-z]{3,9}( [a-z]{3,9}){2,5}"}},
    {"structured_outputs": {"choice": ["yes", "no", "perhaps"]}},
]


# What a completion may want beside its tokens; none of it changes them.
EXTRAS = [{}, {}, {"n": 3}, {"prompt_logprobs": 1}, {"sluice": {"routing": True, "sampling_mask": True, "prompt_routing": True}},
          {"n": 2, "logprobs": 2, "sluice": {"sampling_mask": True}}]


def tokens(answer):
    """Of the first choice."""
    return [token for part in ([answer.body] if answer.body else answer.chunks) for choice in part.get("choices", [])
            if choice["index"] == 0 for token in choice.get("token_ids") or []]


class Item:
    """A request, and the same for sluice-run."""

    def __init__(self, source):
        words = source.choice((4, 30, 80, 200, 500, 1200))
        self.kind = source.choice(("ids", "ids", "chat", "needle", "form"))
        # Short prompts grow long, so that sequences which all had room stand in each other's way later.
        self.max_tokens = source.choice((1, 8, 24, 60, 120) if words > 80 else (24, 120, 400))
        temperature, seed = source.choice((0.0, 0.7, 1.0)), source.randrange(1 << 32)
        self.fields = {"max_tokens": self.max_tokens, "temperature": temperature, "top_p": 0.95, "seed": seed}
        options = ["--max-tokens", str(self.max_tokens), "--temperature", str(temperature), "--top-p", "0.95", "--seed", str(seed)]
        if self.kind == "ids":
            self.prompt = [0] + tokenize(book_text(words, source.randrange(4)))  # few texts: prefixes are often shared
            self.fields["ignore_eos"] = True
            self.fields.update(source.choice(EXTRAS))
            self.expected = REFERENCE.run(["--ids", ",".join(map(str, self.prompt)), "--ignore-eos", *options])["ids"]
        else:
            self.prompt = needle_prompt(words, seed=source.randrange(4)) if self.kind == "needle" else \
                f"Tell me a story about number {source.randrange(100)}."
            if self.kind == "form":
                self.fields.update(source.choice(FORMS))
            self.expected = self.reference_chat(options)

    def reference_chat(self, options):
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump({"messages": [{"role": "user", "content": self.prompt}], **self.fields}, file)
            file.flush()
            return REFERENCE.run(["--messages", file.name, *options])["ids"]

    def send(self, cluster, on_chunk, stream):
        if self.kind == "ids":
            return cluster.completion(self.prompt, on_chunk, stream=stream, **self.fields)
        return cluster.chat(self.prompt, on_chunk, stream=stream, **self.fields)


class Traffic:
    """Clients that send until the time is over; what they saw."""

    def __init__(self, cluster, items, seconds):
        self.cluster, self.items = cluster, items
        self.deadline = time.monotonic() + seconds
        self.outcomes = collections.Counter()
        self.wrong = []
        self.threads = [threading.Thread(target=self.client, args=(index,)) for index in range(CLIENTS)]

    def client(self, index):
        source = random.Random(SEED * 1000 + index)
        while time.monotonic() < self.deadline and not self.wrong:
            try:
                self.one(source)
            except Exception as error:  # a broken connection is a verdict, too
                self.wrong.append(f"client {index}: {error!r}")

    def one(self, source):
        item = source.choice(self.items)
        hang_up_at = source.randrange(item.max_tokens) if source.random() < 0.3 else None

        def on_chunk(answer):
            if hang_up_at is not None and len(answer.token_ids) >= hang_up_at:
                raise StopIteration
        stream = hang_up_at is not None or source.random() < 0.5
        answer = item.send(self.cluster, on_chunk, stream)
        if answer.status in (429, 503) and "retry-after" in answer.headers:
            self.outcomes["refused"] += 1
        elif answer.error and answer.error.get("code") == "overloaded":  # a later choice of a stream found no room
            self.outcomes["refused"] += 1
            if tokens(answer) != item.expected[:len(tokens(answer))]:
                self.wrong.append(f"{item.kind} {item.fields}: {tokens(answer)} does not begin {item.expected}")
        elif answer.status != 200 or answer.error:
            self.wrong.append(f"{answer.status} {answer.error}")
        elif stream and not answer.done:
            self.outcomes["hung up"] += 1
            if tokens(answer) != item.expected[:len(tokens(answer))]:
                self.wrong.append(f"{item.kind} {item.fields}: {tokens(answer)} does not begin {item.expected}")
        else:
            self.outcomes["finished"] += 1
            if tokens(answer) != item.expected:
                self.wrong.append(f"{item.kind} {item.fields}: {tokens(answer)} instead of {item.expected}")


def resident_mb(pid):
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def sample(cluster, watched, samples):
    for name, pid in watched.items():
        samples[name, "heap"].append(cluster.metric(name, "sluice_heap_bytes") / 1e6)
        samples[name, "resident"].append(resident_mb(pid))


def check_flat(samples):
    """{(process, kind): [MB]} of the whole run."""
    for (name, kind), values in samples.items():
        third = len(values) // 3
        middle, last = statistics.median(values[third:2 * third]), statistics.median(values[2 * third:])
        print(f"{name}: {kind}: {middle:.2f} MB in the middle third, {last:.2f} MB in the last", flush=True)
        assert (kind == "resident" and SANITIZED) or last <= middle * GROWTH_MAX + GROWTH_FREE_MB[kind], \
            f"{name} grows: {kind}: {values[::max(1, third // 10)]}"


def tier_file():
    path = os.path.join(ROOT, "build", "test-clusters", "soak.tier")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.exists(path):
        os.remove(path)
    return path + ":64MiB"


def full_mixed_traffic():
    source = random.Random(SEED)
    items = [Item(source) for _ in range(ITEMS)]
    with Cluster("soak", "--prefill", 1, "--decode", 2, "--node-args", "--kv-memory 11MiB --kv-overcommit 4 --chunk-tokens 256 "
                 "--mtp-depth 2", "--env", "decode-0:SLUICE_KV_DISK=" + tier_file()) as cluster:
        cluster.patience = 4 * PATIENCE  # three long choices, one after the other, on a machine that others use: not one byte before the end
        traffic = Traffic(cluster, items, MINUTES * 60)
        watched = {node["name"]: node["pid"] for node in cluster.state["nodes"] if node["role"] != "etcd"}
        samples = collections.defaultdict(list)
        for thread in traffic.threads:
            thread.start()
        over = threading.Event()
        while any(thread.is_alive() for thread in traffic.threads):
            sample(cluster, watched, samples)
            over.wait(SAMPLE_SECONDS)
        for thread in traffic.threads:
            thread.join()
        preempted = sum(cluster.metric(node["name"], "sluice_decode_preempted_total") for node in cluster.nodes("decode"))
        print(f"{MINUTES:g} minutes: {dict(traffic.outcomes)}, {preempted:.0f} times a sequence gave way", flush=True)
        assert not traffic.wrong, traffic.wrong[:3]
        assert traffic.outcomes["finished"] and traffic.outcomes["hung up"] and preempted, (traffic.outcomes, preempted)
        check_flat(samples)
        cluster.wait_at_rest()
