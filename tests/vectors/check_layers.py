#!/usr/bin/env python3
"""Single layers of a random checkpoint in the published layout, `sluice-run` against the reference.

    tests/vectors/check_layers.py                  # a small model of distinct dimensions; what `make test` runs
    tests/vectors/check_layers.py --shape full     # V3.2's own dimensions: dense, MoE and MTP layer

The small model: every row, scales in all three types, files that are not there, bytes that do not depend on
what is chosen. Full size (12 GB of disk and memory at a time, made and removed here): one row, 70 rows, and
prompts past index_topk, of which the reference computes some rows. Rows are drawn from a fixed seed.

Judged: output rows and chosen experts bit for bit, index sets exactly. --not-exact is for an engine that sums
in another order (another numerics id): then a mean row error of 1e-2, 4 % of the index sets and 1 % of the
rows' experts may differ, which is what two correct orders do to each other (judge.py).
"""

import argparse
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
sys.path.insert(0, os.path.join(ROOT, "tools", "reference"))
import pinned  # noqa: F401 -- before NumPy
import numpy as np

import judge
from engine import Engine, EngineError
from judge import Tally
from sluice_ref import rope
from sluice_ref.config import load_config
from sluice_ref.model import LayerCache, Model, Record
from sluice_ref.rounding import bf16_bits, bf16_widen
from sluice_ref.run import kept_bits
from sluice_ref.safetensors_io import MappedCheckpoint
from sluice_ref.weights import SomeLayers

SEED = 4
ROW_ERROR = judge.OTHER_ORDER["error"]
# (tokens, rows that the reference computes, rows whose index sets alone are compared)
SMALL = {layer: ((1, None, ()), (70, None, ()), (300, [0, 63, 64, 65, *range(70, 300, 10), 299], ()))
         for layer in ("dense", "moe", "mtp")}
LONG = [0, 1023, 2046, 2047, 2048, 2049, 2111, 2112, 2150, 2199]
FULL = {
    "dense": ((1, None, ()), (70, [0, 1, 35, 63, 64, 69], ()), (2200, LONG, range(2040, 2200))),
    "moe": ((1, None, ()), (70, None, ()), (300, [0, 63, 64, 127, 128, 200, 255, 256, 298, 299], ())),
    "mtp": ((1, None, ()), (70, [0, 1, 35, 63, 64, 69], ())),
}


def machine():
    model = "?"
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        for line in f:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (f"{model}, {os.cpu_count()} cores, {memory / 2**30:.0f} GiB, load {os.getloadavg()[0]:.1f}, "
            f"{platform.system()} {platform.release()}")


def make_checkpoint(out, shape, layers, *more):
    shutil.rmtree(out, ignore_errors=True)
    subprocess.run([os.path.join(ROOT, "tools", "make-checkpoint"), "--out", out, "--shape", shape,
                    "--layers", layers, *more], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)


def inputs(tokens, hidden, seed):
    """bf16 bits of x and residual: normal deviates, some channels ten times larger, as activations have."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, hidden)).astype(np.float32)
    res = rng.standard_normal((tokens, hidden)).astype(np.float32)
    x[:, ::97] *= 10
    return bf16_bits(x), bf16_bits(res)


def reference_sets(model, layer, x, res, rows):
    """S(t) of rows, without their attention."""
    w, cache = model.weights.layers[layer], LayerCache(model.config)
    positions = np.arange(len(x))
    cos, sin = rope.tables(model.freq, positions)
    n = model.norm(x, w.input_norm, res)[0]
    model.fill_cache(n, w, cache, cos, sin)
    qr = model.norm(model.linear(n[rows], w.q_a), w.q_norm)[0]
    return model.select(model.index_scores(n[rows], qr, w, cache, cos[rows], sin[rows]), positions[rows])


class Checker:
    def __init__(self, engine, tally, path, exact):
        self.engine, self.tally, self.path, self.exact = engine, tally, path, exact
        self.config = load_config(path)

    def layer_index(self, kind):
        return {"dense": 0, "moe": self.config.dense_layers, "mtp": self.config.mtp_index}[kind]

    def reference(self, kind, x, res, rows):
        """(x, res bits, h of the last row or None, kept, experts or None) of the chosen rows."""
        layer, record = self.layer_index(kind), Record()
        weights = SomeLayers(self.path, self.config, [layer])
        model, cache = Model(self.config, weights), LayerCache(self.config)
        wide = bf16_widen(x), bf16_widen(res)
        if kind == "mtp":
            out_x, out_res = model.mtp_layer(*wide, cache, record, rows)
            normed = model.norm(out_x, weights.mtp_norm, out_res)[0]
        else:
            (out_x, out_res), normed = model.layer(layer, *wide, cache, record, rows), None
        return (bf16_bits(out_x), bf16_bits(out_res), normed, record.kept[0],
                record.experts[0] if record.experts else None)

    def case(self, kind, tokens, rows, set_rows):
        layer, name = self.layer_index(kind), f"{kind} layer, {tokens} rows"
        rows = np.arange(tokens) if rows is None else np.array(rows)
        x, res = inputs(tokens, self.config.hidden, SEED + tokens)
        took, dump = self.engine.layers_timed(self.path, layer, layer + 1, x, res)
        begin = time.monotonic()
        want_x, want_res, normed, kept, experts = self.reference(kind, x, res, rows)
        bits = dump["kept_bits"][0]
        sets = [(rows, kept)]
        if len(set_rows):
            model = Model(self.config, SomeLayers(self.path, self.config, [layer]))
            more = np.array(set_rows)
            sets.append((more, reference_sets(model, layer, bf16_widen(x), bf16_widen(res), more)))
        judged = {"rows": self.judge_rows(name, dump["layer_x"][rows], dump["layer_res"][rows], want_x,
                                          want_res),
                  "sets": self.judge_sets(name, bits, sets, tokens)}
        if experts is not None:
            wrong = float(np.mean((dump["experts"][0][rows] != experts).any(axis=1)))
            self.tally.check(f"{name}: experts", wrong <= (0 if self.exact else judge.ALONE_EXPERTS),
                             f"{100 * wrong:.1f} % of the rows differ")
        if normed is not None and rows[-1] == tokens - 1 and self.exact:
            self.tally.check(f"{name}: shared_head.norm", judge.same(dump["normed_last"], normed[-1]))
        load = took["loaded_bytes"] / 1e3 / max(took["timing"]["load_ms"], 1e-3)
        print(f"{name}: {len(rows)} rows compared: {judged['rows']}; {judged['sets']}; "
              f"load {took['loaded_bytes'] / 1e9:.2f} GB at {load:.0f} MB/s, step "
              f"{took['timing']['step_ms']:.1f} ms, reference {time.monotonic() - begin:.0f} s", flush=True)

    def judge_rows(self, name, x, res, want_x, want_res):
        equal = judge.rows_equal(x, res, want_x, want_res)
        error = float(np.mean(judge.row_errors(x, res, want_x, want_res)))
        good = equal == 1.0 if self.exact else error <= ROW_ERROR
        text = f"{100 * equal:.1f} % bit-equal, mean row error {error:.0e}"
        self.tally.check(f"{name}: rows", good and np.any(bf16_widen(want_x)), text)
        return text

    def judge_sets(self, name, bits, sets, tokens):
        chosen = wrong = total = 0
        for rows, kept in sets:
            differ = (bits[rows] != kept_bits(kept, tokens)).any(axis=1)
            chosen += int(np.sum(rows >= self.config.index_topk))
            wrong, total = wrong + int(np.sum(differ)), total + len(rows)
        limit = 0 if self.exact else judge.ALONE_SETS * max(chosen, 1)
        text = f"{wrong} of {total} index sets differ ({chosen} past index_topk)"
        self.tally.check(f"{name}: index sets", wrong <= limit, text)
        return text


# --- what only the small model is for ---

def same_tensors(a, b, names):
    return all(a[n][0] == b[n][0] and np.array_equal(a[n][1], b[n][1]) for n in names)


def check_files(tally, engine, scratch, whole):
    """Chosen layers have the bytes they have in the whole; what is not chosen is named when missed."""
    part = os.path.join(scratch, "part")
    make_checkpoint(part, "small", "1")
    all_tensors, some = MappedCheckpoint(whole), MappedCheckpoint(part)
    tally.check("chosen layers: bytes as in the whole",
                0 < len(some) < len(all_tensors) and same_tensors(all_tensors, some, some))
    x, res = inputs(3, load_config(part).hidden, 1)
    got, want = (engine.layers(path, 1, 2, x, res) for path in (part, whole))
    tally.check("chosen layers: same output", all(judge.same(got[k], want[k]) for k in want))
    for layer in (0, 2):
        try:
            engine.layers(part, layer, layer + 1, x, res)
            text = "ran"
        except EngineError as e:
            text = str(e)
        tally.check(f"a layer that is not there: {layer}",
                    f"model.layers.{layer}." in text and "is missing" in text and "model-0000" in text, text)
    other = os.path.join(scratch, "other")
    make_checkpoint(other, "small", "1", "--seed", "2")
    name = "model.layers.1.self_attn.o_proj.weight"
    tally.check("another seed: other bytes", not same_tensors(some, MappedCheckpoint(other), [name]))


def check_scales(tally, engine, scratch, whole):
    """f32, F8_E8M0 and U8 scales are the same numbers."""
    x, res = inputs(9, load_config(whole).hidden, 2)
    want = engine.layers(whole, 1, 2, x, res)
    for scales in ("e8m0", "u8"):
        path = os.path.join(scratch, scales)
        make_checkpoint(path, "small", "1", "--scales", scales)
        got = engine.layers(path, 1, 2, x, res)
        tally.check(f"scales as {scales}: same output", all(judge.same(got[k], want[k]) for k in want))


def check_unwritable(tally, scratch):
    """A place that cannot be written is one line that names it, not a traceback."""
    plain = os.path.join(scratch, "plain")
    with open(plain, "w", encoding="utf-8"):
        pass

    def small_files():  # as on a full disk: a write in the midst of a file fails
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    for what, out, limit in (("a file", plain, None), ("below a file", os.path.join(plain, "x"), None),
                             ("in /proc", "/proc/sluice", None), ("full", os.path.join(scratch, "full"), small_files)):
        done = subprocess.run([os.path.join(ROOT, "tools", "make-checkpoint"), "--out", out, "--shape", "small"],
                              capture_output=True, text=True, check=False, preexec_fn=limit)
        text = done.stderr.strip().split("\n")[-1]
        tally.check(f"a place that cannot be written: {what}", done.returncode == 1 and "Traceback" not in done.stderr
                    and text.startswith(f"make-checkpoint: {out}") and "--out" in text, done.stderr[-300:])


def check_whole(tally, program, scratch):
    """All 163 files, without data: they open, and a machine that is too small says so at once (a larger one
    finds scales of zero)."""
    path = os.path.join(scratch, "whole")
    make_checkpoint(path, "full", "all", "--holes")
    for name in ("tokenizer.json", "generation_config.json"):
        shutil.copyfile(os.path.join(ROOT, "models", "demo", name), os.path.join(path, name))
    begin = time.monotonic()
    done = subprocess.run([program, "--model", path, "--ids", "0"], capture_output=True, text=True, check=False)
    text = done.stderr.strip().split("\n")[-1]
    tally.check("the whole of a model that does not fit", done.returncode == 1 and
                ("the weights need 68" in text or "is 0, not a power of two" in text), text)
    print(f"163 files opened and judged in {time.monotonic() - begin:.1f} s: {text}", flush=True)


# --- load beside the raw read ---

def forget(directory):
    """Drops the files from the page cache."""
    for name in os.listdir(directory):
        with open(os.path.join(directory, name), "rb") as f:
            os.fsync(f.fileno())
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def raw_read(directory, threads=2):
    """MB/s of reading all weight files with as many threads as the load has."""
    paths = [os.path.join(directory, n) for n in sorted(os.listdir(directory)) if n.endswith(".safetensors")]
    pieces = [(p, at) for p in paths for at in range(0, os.path.getsize(p), 16 << 20)]
    total, lock = sum(map(os.path.getsize, paths)), threading.Lock()

    def work():
        buffer = bytearray(16 << 20)
        while True:
            with lock:
                if not pieces:
                    return
                path, at = pieces.pop(0)
            with open(path, "rb", buffering=0) as f:
                os.preadv(f.fileno(), [buffer], at)

    begin = time.monotonic()
    workers = [threading.Thread(target=work) for _ in range(threads)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    return total / 1e6 / (time.monotonic() - begin)


def bench(engine, path, kind, layer, hidden):
    """CPU seconds too: on a busy machine they say more than the rate."""
    x, res = inputs(1, hidden, 1)
    for state in ("cold", "warm"):
        if state == "cold":
            forget(path)
        cpu = time.process_time()
        raw = raw_read(path)
        raw_cpu = time.process_time() - cpu
        if state == "cold":
            forget(path)
        before = os.times()
        took = engine.layers_timed(path, layer, layer + 1, x, res)[0]
        after = os.times()
        cpu = (after.children_user + after.children_system - before.children_user - before.children_system)
        load = took["loaded_bytes"] / 1e3 / took["timing"]["load_ms"]
        print(f"load of the {kind} layer, {took['loaded_bytes'] / 1e9:.2f} GB, files {state}: {load:.0f} MB/s "
              f"and {cpu:.1f} s of CPU; raw read {raw:.0f} MB/s and {raw_cpu:.1f} s ({100 * load / raw:.0f} %)",
              flush=True)


# --- all of it ---

def check_kind(args, engine, tally, scratch, kind, cases):
    path = os.path.join(scratch, kind)
    config = {"full": {"dense": "0", "moe": "3", "mtp": "mtp"}}.get(args.shape)
    make_checkpoint(path, args.shape, config[kind] if config else "all")
    checker = Checker(engine, tally, path, not args.not_exact)
    for tokens, rows, set_rows in cases if not args.bench else ():
        try:
            checker.case(kind, tokens, rows, set_rows)
        except (EngineError, KeyError, ValueError, IndexError) as e:
            tally.check(f"{kind} layer, {tokens} rows", False, f"{type(e).__name__}: {e}")
    if args.bench:
        bench(engine, path, kind, checker.layer_index(kind), checker.config.hidden)
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default=os.path.join(ROOT, "build", "bin", "sluice-run"))
    parser.add_argument("--run-option", action="append", default=[], metavar="OPTION",
                        help="passed on to the program (repeat)")
    parser.add_argument("--shape", choices=("small", "full"), default="small")
    parser.add_argument("--kinds", default="dense,moe,mtp", help="which layers (default all three)")
    parser.add_argument("--scratch", help="where checkpoints are made and removed (default build/)")
    parser.add_argument("--bench", action="store_true", help="only MB/s of the load beside the raw read")
    parser.add_argument("--cpu", default=os.environ.get("SLUICE_CPU") or "cpu-f32-v1",
                        help="SLUICE_CPU: variant or numerics id (default: that of the environment, or cpu-f32-v1, "
                             "the vectors' own order); of cpu-amx-v1 limits only")
    parser.add_argument("--not-exact", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    args.not_exact = args.not_exact or "amx" in args.cpu
    if not os.path.exists(args.run):
        print(f"check_layers: {args.run} does not exist (build it first)", file=sys.stderr)
        return 2
    tally, begin = Tally(args.verbose), time.monotonic()
    print(machine())
    place = args.scratch or os.path.join(ROOT, "build")
    os.makedirs(place, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="layers-", dir=place) as scratch:
        engine = Engine(args.run, scratch, args.run_option, args.cpu)
        for kind in args.kinds.split(","):
            path = check_kind(args, engine, tally, scratch, kind,
                              (FULL if args.shape == "full" else SMALL)[kind])
            if args.shape == "full":
                shutil.rmtree(path)
        if args.shape == "small" and not args.bench:
            check_files(tally, engine, scratch, path)
            check_scales(tally, engine, scratch, path)
            check_whole(tally, args.run, scratch)
            check_unwritable(tally, scratch)
    print(f"{engine.runs} runs of the engine, {time.monotonic() - begin:.0f} s")
    if args.bench:
        return 0
    print(f"{tally.passed} passed, {tally.failed} failed, {tally.skipped} skipped")
    return 1 if tally.failed else 0


if __name__ == "__main__":
    sys.exit(main())
