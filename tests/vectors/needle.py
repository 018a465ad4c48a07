#!/usr/bin/env python3
"""Facts hidden in long prompts: does the demo model find them through the sparse attention?

    tests/vectors/needle.py [--tokens 16000] [--count 20]     facts at even depths; each must be found
    tests/vectors/needle.py --tokens 131000 --complete        one prompt: it completes, with the memory
                                                              predicted; its answer is only shown

The haystack is the book text of the published vectors' prompts (../shared/demo-model), repeated where it
is too short. The last line is `N passed, N failed, N skipped`.
"""
import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
RUN = os.path.join(os.environ.get("SLUICE_BIN", os.path.join(ROOT, "build/bin")), "sluice-run")
MODEL = os.path.join(ROOT, "models/demo")
VECTORS = os.path.join(ROOT, "../shared/demo-model/vectors")
NAMES = ["Alice", "Oliver", "Martin", "Clara", "Walter", "Noor", "Ian", "Uma", "Xavier", "Flora"]
# Facts of the vectors' own prompts: not in our haystack.
FACT = re.compile(r"secret number|password|code word|phone number|favou?rite|You are |<\|")
MARGIN_BYTES = 64 << 20  # weights being read, stacks, libraries


def paragraphs():
    found = []
    for name in sorted(os.listdir(VECTORS)):
        if name.endswith(".json") and name.startswith(("needle", "raw-book")):
            with open(os.path.join(VECTORS, name), encoding="utf-8") as file:
                prompt = json.load(file)["prompt"]
            text = re.sub("<｜[^｜]*｜>|</?think>", "\n\n", prompt)
            found += [p for p in text.split("\n\n") if p.strip() and not FACT.search(p)]
    return found


def token_count(text):
    ids = subprocess.run([RUN, "--model", MODEL, "--tokenize"], input=text.encode(), check=True,
                         capture_output=True).stdout
    return len(json.loads(ids)["ids"])


def haystack(source, tokens, rate, start):
    """Paragraphs of about `tokens` tokens (`rate` characters each), beginning with number `start`."""
    out, characters = [], 0
    while characters < tokens * rate:
        out.append(source[(start + len(out)) % len(source)])
        characters += len(out[-1]) + 2
    return out


def prompt_of(source, tokens, rate, number, depth, dice):
    name, secret = NAMES[number % len(NAMES)], str(dice.randrange(10000, 99999))
    text = haystack(source, tokens, rate, dice.randrange(len(source)))
    text.insert(round(depth * len(text)), f"The secret number of {name} is {secret}.")
    return "\n\n".join(text) + f"\n\nWhat is the secret number of {name}?", secret


def answer(prompt, threads):
    """(what sluice-run said as JSON, its largest resident memory in bytes)"""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
        file.write(prompt)
        file.flush()
        process = subprocess.Popen(
            [RUN, "--model", MODEL, "--threads", str(threads), "--chat", "--prompt-file", file.name,
             "--temperature", "0", "--max-tokens", "24", "--json"], stdout=subprocess.PIPE)
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"sluice-run: exit code {process.returncode}")
    return json.loads(text), usage.ru_maxrss * 1024


def run_needles(args, source, rate):
    dice, passed = random.Random(args.seed), 0
    for i in range(args.count):
        depth = (i + 0.5) / args.count
        prompt, secret = prompt_of(source, args.tokens, rate, i, depth, dice)
        said, _ = answer(prompt, args.threads)
        ok = secret in said["text"]
        passed += ok
        print(f"{'ok' if ok else 'not ok'} - {len(said['prompt_ids'])} tokens, depth {depth:.3f}: "
              f"{said['text'].strip()!r}, hidden was {secret}, "
              f"{len(said['prompt_ids']) / said['timing']['prefill_ms'] * 1e3:.0f} tokens/s", flush=True)
    return passed, args.count - passed


def run_complete(args, source, rate):
    """A prompt may lie beyond what the model was trained on: what counts is that it completes and
    takes the cache and scratch it says."""
    prompt, secret = prompt_of(source, args.tokens, rate, 0, 0.5, random.Random(args.seed))
    small, small_bytes = answer("Hello!", args.threads)
    large, large_bytes = answer(prompt, args.threads)
    memory = {key: large["memory"][key] - small["memory"][key] for key in ("cache", "scratch")}
    grown = large_bytes - small_bytes
    ok = memory["cache"] - MARGIN_BYTES <= grown <= sum(memory.values()) + MARGIN_BYTES
    timing = large["timing"]
    print(f"{'ok' if ok else 'not ok'} - {len(large['prompt_ids'])} tokens: {large['text'].strip()!r}, "
          f"hidden was {secret}; memory grew by {grown / 1e6:.0f} MB, predicted cache "
          f"{memory['cache'] / 1e6:.0f} MB, scratch up to {memory['scratch'] / 1e6:.0f} MB; prefill "
          f"{timing['prefill_ms'] / 1e3:.0f} s, then {timing['decode_ms'] / max(1, len(large['ids'])):.1f} "
          "ms a token", flush=True)
    return int(ok), int(not ok)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16000)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--complete", action="store_true")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if not os.path.isdir(VECTORS):
        print("SKIPPED: ../shared/demo-model is not there")
        print("0 passed, 0 failed, 1 skipped")
        return 0
    source = paragraphs()
    text = "\n\n".join(source)
    rate = len(text) / token_count(text)
    passed, failed = (run_complete if args.complete else run_needles)(args, source, rate)
    print(f"{passed} passed, {failed} failed, 0 skipped")
    return 1 if failed else 0


sys.exit(main())
