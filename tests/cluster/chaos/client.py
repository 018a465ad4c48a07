"""Requests whose answers are known beforehand, and an HTTP client that records when each token came."""

import asyncio
import json
import os
import random
import subprocess
import sys
import time

HANG_SECONDS = 120.0  # no request may take so long: the slowest fault and all deadlines together are less


class Reference:
    """What the stub engine must answer (reference.c)."""

    def __init__(self, program, model):
        self.process = subprocess.Popen([program, model], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def tokens(self, item):
        head = f"{item.max_tokens} {item.temperature} {item.seed} {int(item.ignore_eos)} "
        self.process.stdin.write(head + " ".join(map(str, item.prompt)) + "\n")
        self.process.stdin.flush()
        return [int(word) for word in self.process.stdout.readline().split()]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Item:
    """One request and its answer."""

    def __init__(self, prompt, max_tokens, temperature=0.0, seed=0, ignore_eos=True, expected=None, stream=True, hang_up_at=None):
        self.prompt, self.max_tokens, self.temperature, self.seed = prompt, max_tokens, temperature, seed
        self.ignore_eos, self.expected, self.stream, self.hang_up_at = ignore_eos, expected, stream, hang_up_at

    def body(self):
        return {"model": "demo", "prompt": self.prompt, "max_tokens": self.max_tokens, "temperature": self.temperature, "top_p": 1.0,
                "seed": self.seed, "ignore_eos": self.ignore_eos, "stream": self.stream, "return_token_ids": True}


class Items:
    """A stream of items from a seed: beginnings that are often shared, tails that are not."""

    def __init__(self, seed, reference):
        self.source, self.reference = random.Random(seed), reference
        self.beginnings = [self.ids(length) for length in (64, 128, 200, 320, 640)]

    def ids(self, count):
        return [self.source.randrange(300, 4000) for _ in range(count)]

    def prompt(self):
        source = self.source
        length = source.choice((3, 20, 20, 60, 60, 130, 130, 260, 260, 700)) if source.random() < 0.97 else 2600
        return (source.choice(self.beginnings) if source.random() < 0.4 else []) + self.ids(length)

    def next(self, prompt=None, max_tokens=None):
        source = self.source
        item = Item(prompt or self.prompt(), max_tokens or source.choice((1, 8, 24, 40, 60)), source.choice((0.0, 1.0)),
                    source.randrange(1 << 32), source.random() < 0.8, stream=source.random() < 0.7)
        if item.stream and max_tokens is None and source.random() < 0.1:
            item.hang_up_at = source.randrange(item.max_tokens)
        item.expected = self.reference.tokens(item)
        return item


class DemoItems:
    """Requests to the demo model, and what sluice-run answers (tests/cluster/lib.py); asked again and again."""

    def __init__(self, seed, count):
        sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        from lib import REFERENCE, book_text, tokenize
        source = random.Random(seed)
        self.source, self.made = source, []
        for _ in range(count):
            prompt = [0] + tokenize(book_text(source.choice((4, 30, 80, 200, 500)), source.randrange(6)))
            item = Item(prompt, source.choice((1, 8, 24, 40)), source.choice((0.0, 1.0)), source.randrange(1 << 32),
                        stream=source.random() < 0.7)
            item.expected = REFERENCE.run(["--ids", ",".join(map(str, prompt)), "--max-tokens", str(item.max_tokens), "--temperature",
                                           str(item.temperature), "--top-p", "1", "--seed", str(item.seed), "--ignore-eos"])["ids"]
            self.made.append(item)

    def next(self):
        return self.source.choice(self.made)


class Outcome:
    """What a client saw. verdict: right, wrong, error (a clear one), broken (the connection), hung up, hang."""

    def __init__(self, item):
        self.item, self.verdict, self.text = item, None, ""
        self.tokens, self.times, self.headers, self.status = [], [], {}, None
        self.began = self.ended = 0.0

    def judge(self, finished):
        if self.tokens != self.item.expected[:len(self.tokens)]:
            self.verdict = "wrong"
            self.text = f"{self.tokens} instead of {self.item.expected}"
        elif finished and len(self.tokens) != len(self.item.expected):
            self.verdict = "wrong"
            self.text = f"{len(self.tokens)} tokens instead of {len(self.item.expected)}"
        else:
            self.verdict = "right" if finished else "hung up"


class HungUp(Exception):
    pass


def take_line(outcome, line, on_token):
    """One line of an event stream; True at its end."""
    if line == b"data: [DONE]":
        return True
    if not line.startswith(b"data: "):
        return False
    chunk = json.loads(line[6:])
    if "error" in chunk:
        outcome.verdict, outcome.text = "error", str(chunk["error"])
        return False
    for choice in chunk.get("choices", []):
        ids = choice.get("token_ids") or []
        if ids:
            outcome.tokens += ids
            outcome.times += [time.monotonic()] * len(ids)
            if on_token:
                on_token(outcome)
    if outcome.item.hang_up_at is not None and len(outcome.tokens) >= outcome.item.hang_up_at:
        raise HungUp
    return False


async def read_head(outcome, reader):
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    while head[0].split()[1].startswith("1"):  # interim answers: is the client still there?
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    outcome.status = int(head[0].split()[1])
    outcome.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}


async def read_stream(outcome, reader, on_token):
    """Chunked: sizes and data alternate; lines may span chunks."""
    rest, done = b"", False
    while True:
        size = int((await reader.readuntil(b"\r\n")).strip(), 16)
        data = (await reader.readexactly(size + 2))[:-2]
        if size == 0:
            return done
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            done = take_line(outcome, line.strip(), on_token) or done


async def exchange(outcome, address, on_token):
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=8 << 20)
    try:
        body = json.dumps(outcome.item.body()).encode()
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
                     b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await read_head(outcome, reader)
        if outcome.headers.get("content-type", "").startswith("text/event-stream"):
            done = await read_stream(outcome, reader, on_token)
            if outcome.verdict is None:
                outcome.judge(done)
                if not done:
                    outcome.verdict, outcome.text = "wrong", "the stream ended without [DONE] and without an error"
            return
        answer = json.loads(await reader.readexactly(int(outcome.headers["content-length"])))
        if "error" in answer:
            outcome.verdict, outcome.text = "error", f"{outcome.status} {answer['error']}"
            return
        outcome.tokens = [token for choice in answer["choices"] for token in choice["token_ids"]]
        outcome.judge(True)
    finally:
        writer.transport.abort()


async def ask(address, item, on_token=None, patience=HANG_SECONDS):
    """Sends the item and waits for its end."""
    outcome = Outcome(item)
    outcome.began = time.monotonic()
    try:
        await asyncio.wait_for(exchange(outcome, address, on_token), patience)
    except HungUp:
        outcome.judge(False)
    except asyncio.TimeoutError:
        outcome.verdict, outcome.text = "hang", f"no end in {patience:.0f} s; {len(outcome.tokens)} tokens"
    except (OSError, asyncio.IncompleteReadError) as error:
        outcome.verdict, outcome.text = "broken", repr(error)
    outcome.ended = time.monotonic()
    return outcome
