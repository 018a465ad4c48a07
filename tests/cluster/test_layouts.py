"""Numbers of nodes and lengths of prompts change nothing: 1P1D, 2P1D, 1P3D, and a prompt of 128K tokens, all equal one process."""

import os
import threading
import time

from lib import REFERENCE, Cluster, book_text, tokenize, wait_for
from test_one_answer import ask_all, compare, work_list

LONG_TOKENS = int(os.environ.get("SLUICE_LONG_TOKENS", "130000"))
LONG_SECONDS = 3600  # a limit for slow machines: a prompt of 128K is minutes of both cores


def peak_mb(pid):
    """The largest resident memory that a process has had."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) // 1024


def full_layouts():
    work = work_list(24, 6, 0)
    for prefill, decode in ((1, 1), (2, 1), (1, 3)):
        with Cluster(f"layouts-{prefill}-{decode}", "--prefill", prefill, "--decode", decode, "--node-args", "--chunk-tokens 256",
                     "--router-args=--self-prefill=false") as cluster:
            compare(work, ask_all(cluster, work, 16), f"{prefill}P{decode}D")
            shares = {node["name"]: cluster.metric(node["name"], "sluice_prompt_tokens_total" if node["role"] == "prefill"
                                                   else "sluice_generation_tokens_total")
                      for role in ("prefill", "decode") for node in cluster.nodes(role)}
            assert all(shares.values()), shares
            print(f"{prefill}P{decode}D: {len(work)} prompts equal; tokens by node {shares}", flush=True)
            cluster.wait_at_rest()


def computed_at(cluster, tokens, out):
    wait_for(lambda: cluster.metric("prefill-0", "sluice_prompt_tokens_total") >= tokens, "the prompt to be computed", LONG_SECONDS)
    out["computed"] = time.monotonic()


def full_long_prompt():
    """One request of 128K tokens. Told: bytes moved, largest memory of each node, and the tail: from the prompt's end on P to D's first token."""
    text = tokenize(book_text(LONG_TOKENS, 7))
    ids = [0] + text[:LONG_TOKENS - 1]
    assert len(ids) == LONG_TOKENS
    waits = f"--prefill-timeout {LONG_SECONDS}s --token-timeout {LONG_SECONDS}s"
    with Cluster("long-prompt", "--kv-memory", "1GiB", "--threads", "2", "--router-args", waits) as cluster:
        before = {name: peak_mb(cluster.node(name)["pid"]) for name in ("prefill-0", "decode-0")}
        times, started = {}, time.monotonic()
        watch = threading.Thread(target=computed_at, args=(cluster, LONG_TOKENS, times))
        watch.start()

        def on_chunk(answer):
            if answer.token_ids:
                times.setdefault("first", time.monotonic())
        cluster.patience = LONG_SECONDS
        answer = cluster.completion(ids, on_chunk, max_tokens=16, temperature=1.0, top_p=1.0, seed=11, ignore_eos=True, stream=True)
        watch.join()
        compare([(ids, 16, 1.0, 11)], [answer], "128K")
        moved = cluster.metric("decode-0", "sluice_kv_received_bytes_total")
        pages = -(-LONG_TOKENS // 64)
        assert moved == pages * (7 * 50432 + 512), (moved, pages)
        cluster.wait_at_rest()
        after = {name: peak_mb(cluster.node(name)["pid"]) for name in before}
        print(f"{LONG_TOKENS} tokens: computed in {times['computed'] - started:.0f} s, first token {1e3 * (times['first'] - times['computed']):.0f} ms "
              f"after that; {moved / 1e6:.0f} MB moved; peak memory {after} MB (idle {before})", flush=True)
