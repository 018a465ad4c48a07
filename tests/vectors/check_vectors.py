#!/usr/bin/env python3
"""Runs sluice-run against reference vectors and judges it: see README.md beside this file."""

import argparse
import os
import subprocess
import sys
import tempfile
import time

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
sys.path.insert(0, os.path.join(ROOT, "tools", "reference"))
import pinned  # noqa: F401 -- before NumPy
import numpy as np

import judge
from engine import Engine, EngineError
from judge import Tally, same
from vectors import (Models, Vector, equal_router, find_shared, lower_bias, names,
                     zero_index_weights)

QUICK = ("own-raw-3", "own-chat", "own-raw-66", "own-needle", "rnd1-5", "rnd1-80", "rnd2-65",
         "abs-raw-3", "abs-chat-12", "abs-raw-65")
# The tiles' order without tiles: by its plain twin, 50 times slower.
QUICK_BY_TWIN = ("own-raw-3", "own-chat", "rnd1-5", "abs-raw-3")
ALONE_QUICK = ("own-chat", "own-raw-66", "own-needle", "rnd1-80", "abs-raw-65")
LONG = 2000  # tokens from which a prompt takes minutes in plain numerics
CHUNKS_QUICK, CHUNKS_FULL = (7,), (1, 7, 64)


class Checker:
    def __init__(self, engine, models, tally, args):
        self.engine, self.models, self.tally = engine, models, tally
        self.tensor_cores = args.tensor_cores
        self.third_order = "amx" in args.cpu  # neither of the vectors' two orders
        self.exact = not args.not_exact and not args.tensor_cores
        self.numerics = ("fp8",) if args.quick or args.tensor_cores else ("plain", "fp8")

    def topk(self, vector):
        return self.models.config(vector.model)["index_topk"]

    # --- plain ---

    def plain(self, v):
        fields, t, name = v.fields("plain"), v.tensors, f"{v.name} plain"
        tokens = len(fields["greedy"]["ids"])
        ids, text, dump = self.engine.whole(self.models.path(v.model), v.ids, "plain", tokens,
                                            v.positions("plain"))
        check = self.tally.check
        judge.check_greedy(self.tally, f"{name} greedy", ids, fields, judge.PLAIN_GAP)
        for key in ("logits_last4", "mtp_logits_last"):
            want = t["plain." + key]
            error = judge.largest_difference(dump[key], want) / np.max(np.abs(want))
            check(f"{name} {key}", error <= judge.PLAIN_LOGITS, f"{error:.1e} of the largest")
        error = judge.largest_difference(dump["hidden_last"], t["plain.hidden_last"])
        error /= np.max(np.abs(t["plain.hidden_last"]))
        check(f"{name} hidden_last", error <= judge.PLAIN_LOGITS, f"{error:.1e} of the largest")
        judge.check_index_sets(self.tally, f"{name} index sets", fields, dump, False)
        same_text = ids == fields["greedy"]["ids"]
        if same_text:
            judge.check_drafts(self.tally, f"{name} drafts", fields, dump, v.count,
                               0 if self.exact else 0.03)
        self.expected(v, name, "plain", text)

    def expected(self, v, name, tag, text):
        expect = v.json.get("expect")
        if expect and expect["found"].get(tag):
            self.tally.check(f"{name} answer", expect["text"] in text,
                             f"lacks {expect['text']!r}: {text!r}")

    # --- fp8, whole model ---

    def fp8(self, v):
        fields, t, name = v.fields("fp8"), v.tensors, f"{v.name} fp8"
        path, tokens = self.models.path(v.model), len(fields["greedy"]["ids"])
        ids, text, dump = self.engine.whole(path, v.ids, "fp8", tokens, v.positions("fp8"))
        check = self.tally.check
        if self.exact:
            self.fp8_bits(v, name, fields, ids, dump)
        if v.model == "demo":  # the wide limits were measured on this model
            judge.check_greedy(self.tally, f"{name} greedy", ids, fields, judge.WHOLE_GAP)
            self.expected(v, name, "fp8", text)
            if "fp8.logits_last4" in t:
                d = judge.largest_difference(dump["logits_last4"], t["fp8.logits_last4"])
                check(f"{name} logits within the wide limit", d <= judge.WHOLE_LOGITS, f"{d:.2f}")
            if "fp8.layer_x" in t:
                self.wide_hidden(v, name, dump)
        return dump

    def wide_hidden(self, v, name, dump):
        for tag in ("fp8", "fp8_f64"):
            want = judge.bf16_widen(v.tensors[tag + ".layer_x"][1:]).astype(np.float64)
            want += judge.bf16_widen(v.tensors[tag + ".layer_res"][1:])
            if dump["hidden_all"].shape != want.shape:
                self.tally.check(f"{name} hidden_all", False, f"shape {dump['hidden_all'].shape}")
                return
            error = np.linalg.norm(dump["hidden_all"] - want, axis=2) / np.linalg.norm(want, axis=2)
            error = error.mean(axis=1)
            good = v.count < judge.FEW_ROWS or np.all(error <= judge.WHOLE_LAYER_ERROR)
            self.tally.check(f"{name} rows against {tag}, wide limits", good,
                             " ".join(f"{e:.0e}" for e in error))

    def fp8_bits(self, v, name, fields, ids, dump):
        """The CPU engine sums in the reference's own order: every bit is the same."""
        t, check = v.tensors, self.tally.check
        at = judge.first_difference(ids, fields["greedy"]["ids"])
        check(f"{name} bits: greedy", at is None, f"token {at}")
        pairs = {"logits_last4", "mtp_logits_last", "hidden_last", "hidden_all", "normed_last",
                 "cache_latent_last4", "cache_index_last4", "kept_bits"}
        for key in sorted(pairs):
            if "fp8." + key in t:
                check(f"{name} bits: {key}", key in dump and same(dump[key], t["fp8." + key]))
        if "fp8.hidden_crc" in t:
            equal = [float(np.mean(judge.checksums(got) == want))
                     for got, want in zip(dump["hidden_all"], t["fp8.hidden_crc"])]
            check(f"{name} bits: all rows after every layer", equal == [1.0] * len(equal),
                  "shares equal " + " ".join(f"{e:.3f}" for e in equal))
            check(f"{name} bits: logits of all rows",
                  same(judge.checksums(dump["logits"][:v.count]), t["fp8.logits_crc"]))
            check(f"{name} bits: logits of MTP row",
                  same(judge.checksums(dump["mtp_logits_last"][None]), t["fp8.mtp_logits_last_crc"]))
            check(f"{name} bits: experts", same(dump["experts"].astype(np.uint8), t["fp8.experts"]))
        elif "fp8.layer_x" in t:
            want = (judge.bf16_widen(t["fp8.layer_x"][1:]) + judge.bf16_widen(t["fp8.layer_res"][1:]))
            check(f"{name} bits: all rows after every layer", same(dump["hidden_all"], want))
        judge.check_index_sets(self.tally, f"{name} bits: index sets", fields, dump, True)
        judge.check_drafts(self.tally, f"{name} bits: drafts", fields, dump, v.count, 0)

    # --- fp8, layers alone ---

    def alone(self, v):
        """Feeds each stored layer input and compares with the stored entry of the next layer."""
        if "fp8.layer_x" in v.tensors:
            self.alone_chain(v)
        layers = sorted({int(k.split(".")[1]) for k in v.tensors if k.startswith("alone.")})
        for layer in layers:
            self.alone_one(v, layer)

    def run_layer(self, v, layer, x, res):
        return self.engine.layers(self.models.path(v.model), layer, layer + 1, x, res)

    def alone_chain(self, v):
        t, shares = v.tensors, {"fp8": [], "fp8_f64": []}
        errors, sets = {"fp8": [], "fp8_f64": []}, {"fp8": [], "fp8_f64": []}
        for tag in shares:
            x, res = t[tag + ".layer_x"], t[tag + ".layer_res"]
            for layer in range(len(x) - 1):
                got = self.run_layer(v, layer, x[layer], res[layer])
                want = x[layer + 1], res[layer + 1]
                shares[tag].append(judge.rows_equal(got["layer_x"], got["layer_res"], *want))
                errors[tag].append(float(np.mean(
                    judge.row_errors(got["layer_x"], got["layer_res"], *want))))
                if tag + ".kept_bits" in t:
                    sets[tag].append(self.sets(v, got, t[tag + ".kept_bits"][layer]))
        self.judge_orders(v, f"{v.name} layers alone", shares, errors, sets)

    def alone_one(self, v, layer):
        t, base = v.tensors, f"alone.{layer}."
        if layer == 0:
            x = self.models.embedding(v.model, v.ids)
            res = np.zeros_like(x)
        else:
            x, res = t[base + "in_x"], t[base + "in_res"]
        got = self.run_layer(v, layer, x, res)
        shares, errors, sets = {}, {}, {}
        for tag in ("fp8", "fp8_f64"):
            if base + tag + ".x" in t:
                want = t[base + tag + ".x"], t[base + tag + ".res"]
                shares[tag] = [judge.rows_equal(got["layer_x"], got["layer_res"], *want)]
                errors[tag] = [float(np.mean(
                    judge.row_errors(got["layer_x"], got["layer_res"], *want)))]
            sets[tag] = [self.sets(v, got, t[base + tag + ".kept_bits"])]
            if base + tag + ".experts" in t:
                wrong = float(np.mean((got["experts"][0] != t[base + tag + ".experts"]).any(axis=1)))
                limit = 0 if tag == "fp8" and self.exact else judge.ALONE_EXPERTS
                if self.tensor_cores:
                    limit = judge.TENSOR_CORES["experts"]
                self.tally.check(f"{v.name} layer {layer} alone: experts against {tag}",
                                 wrong <= limit, f"{100 * wrong:.1f} % of the rows differ")
        self.judge_orders(v, f"{v.name} layer {layer} alone", shares, errors, sets)

    def judge_orders(self, v, name, shares, errors, sets):
        """One order must be met closely, the other widely; bit for bit if the engine claims that."""
        check = self.tally.check
        for tag, share in shares.items():
            print(f"        {name}: rows bit-equal with {tag}: "
                  + " ".join(f"{100 * s:.1f}" for s in share)
                  + " %, mean row error " + " ".join(f"{e:.0e}" for e in errors[tag]))
        if self.exact:
            check(f"{name}: bit-equal with fp8", min(shares["fp8"]) == 1.0)
            check(f"{name}: sets equal with fp8", not any(sets["fp8"]))
        if self.tensor_cores:
            self.judge_tensor_cores(v, name, errors, sets)
            return
        for tag, differ in sets.items():
            if differ:
                check(f"{name}: sets against {tag}", max(differ) <= judge.ALONE_SETS,
                      f"{100 * max(differ):.1f} % of the rows differ")
        if v.count < judge.FEW_ROWS or len(shares) < 2:
            return
        close = {tag: self.within(shares[tag], errors[tag], judge.SAME_ORDER) for tag in shares}
        wide = {tag: self.within(shares[tag], errors[tag], judge.OTHER_ORDER) for tag in shares}
        check(f"{name}: limits, close to one order and not far from the other",
              all(wide.values()) and (any(close.values()) or self.third_order),
              f"close {close}, wide {wide}")

    def sets(self, v, got, want):
        compare = judge.sets_exchanged if self.tensor_cores else judge.sets_differ
        return compare(got["kept_bits"][0], want, self.topk(v))

    def judge_tensor_cores(self, v, name, errors, sets):
        limits = judge.TENSOR_CORES
        limit = limits["demo" if v.model == "demo" else "random"]
        for tag in errors:
            self.tally.check(f"{name}: rows against {tag}", max(errors[tag]) <= limit,
                             f"mean row error {max(errors[tag]):.0e}")
        for tag, exchanged in sets.items():
            if exchanged:
                self.tally.check(f"{name}: sets against {tag}", max(exchanged) <= limits["exchanged"],
                                 f"{100 * max(exchanged):.1f} % of the positions differ")

    @staticmethod
    def within(shares, errors, limits):
        mean = np.mean(shares) >= limits["mean"] or len(shares) == 1
        return bool(min(shares) >= limits["each"] and mean and max(errors) <= limits["error"])

    # --- properties that need no reference ---

    def chunks(self, v, sizes, first):
        """Any chunking gives the same bits; so does decode (the tail of the prompt forced)."""
        path = self.models.path(v.model)
        keys = ("logits", "hidden_all", "kept_bits", "experts", "cache_latent_last4",
                "cache_index_last4", "mtp_logits_last")
        for size in sizes:
            dump = self.engine.whole(path, v.ids, "fp8", 1, more=("--chunk-tokens", str(size)))[2]
            wrong = [k for k in keys if k in first and k != "logits"
                     and not same(dump[k], first[k])]
            if not same(dump["logits"], first["logits"][:v.count]):
                wrong.append("logits")
            self.tally.check(f"{v.name} chunks of {size} tokens", not wrong, ", ".join(wrong))
        cut = v.count - min(5, v.count - 1)
        dump = self.engine.whole(path, v.ids[:cut], "fp8", 1, force=v.ids[cut:])[2]
        self.tally.check(f"{v.name} last tokens decoded one at a time",
                         same(dump["logits"], first["logits"][:v.count]))

    def bias_property(self, v):
        """Subtracting 2 from every router bias changes nothing (it is for choosing only)."""
        path = self.models.changed(v.model, "low-bias", lower_bias)
        for numerics in self.numerics:
            low = self.engine.whole(path, v.ids, numerics, 1)[2]
            base = self.engine.whole(self.models.path(v.model), v.ids, numerics, 1)[2]
            wrong = [k for k in ("experts", "logits", "hidden_all") if not same(low[k], base[k])]
            self.tally.check(f"{v.name} {numerics}: router bias minus 2 changes nothing", not wrong,
                             ", ".join(wrong))

    def zero_property(self, v):
        """With index weights of zero all scores are equal: the lowest positions are kept."""
        path, topk = self.models.changed(v.model, "zero-index", zero_index_weights), self.topk(v)
        for numerics in self.numerics:
            bits = self.engine.whole(path, v.ids, numerics, 1)[2]["kept_bits"]
            sets = np.unpackbits(bits, axis=2, bitorder="little")[:, :, :v.count].astype(bool)
            t, s = np.arange(v.count)[:, None], np.arange(v.count)
            want = (s <= t) & (s < topk)
            self.tally.check(f"{v.name} {numerics}: equal scores keep positions 0..{topk - 1}",
                             bool(np.all(sets == want)))

    def router_property(self, v):
        """With equal router scores the lowest experts of the lowest groups are chosen."""
        path, c = self.models.changed(v.model, "equal-router", equal_router), \
            self.models.config(v.model)
        want = np.arange(c["num_experts_per_tok"])
        for numerics in self.numerics:
            experts = self.engine.whole(path, v.ids, numerics, 1)[2]["experts"]
            self.tally.check(f"{v.name} {numerics}: equal router scores choose the lowest experts",
                             bool(np.all(experts == want)))

    def properties(self, v):
        for name in ("bias", "zero", "router") if v.count > self.topk(v) else ("bias", "router"):
            attempt(self.tally, f"{v.name} {name} property", getattr(self, name + "_property"), v)


def attempt(tally, name, function, *args):
    """A crash or a missing tensor is a failure of the check, not of the run."""
    try:
        return function(*args)
    except (EngineError, KeyError, ValueError, IndexError, OSError,
            subprocess.TimeoutExpired) as e:
        tally.check(name, False, f"{type(e).__name__}: {e}")
        return None


def check_vector(checker, v, quick, chunks):
    begin = time.monotonic()
    tally = checker.tally
    if not checker.tensor_cores:
        attempt(tally, f"{v.name} plain", checker.plain, v)
    if v.origin != "expanded":  # those vectors' fp8 mode is another attention form
        first = attempt(tally, f"{v.name} fp8", checker.fp8, v)
        if not quick or v.name in ALONE_QUICK:
            attempt(tally, f"{v.name} layers alone", checker.alone, v)
        if first is not None and chunks:
            attempt(tally, f"{v.name} chunks", checker.chunks, v,
                    CHUNKS_QUICK if quick else CHUNKS_FULL, first)
    print(f"{v.name}: {v.count} tokens, {time.monotonic() - begin:.1f} s", flush=True)


def check_own(checker, quick):
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data")
    left = []
    for name in names(folder):
        if quick and name not in quick:
            left.append(name)
            continue
        model = {"own": "demo", "rnd1": "random-1", "rnd2": "random-2"}[name.split("-")[0]]
        v = Vector(folder, name, model, "own")
        check_vector(checker, v, quick, name in ("own-raw-66", "rnd1-80") or not quick)
    for name, model in (("own-needle", "demo"), ("rnd1-80", "random-1"), ("rnd2-160", "random-2")):
        v = Vector(folder, name, model, "own")
        if quick and model == "random-2":
            left += [f"properties on {model}", "properties in plain numerics",
                     f"layers alone but of {', '.join(ALONE_QUICK)}"]
        elif quick and name not in quick:
            left.append(f"properties on {model}")
        else:
            checker.properties(v)
    return left


def check_shared(checker, shared, quick, long):
    left = []
    for origin, folder in (("absorbed", os.path.join(shared, "vectors", "fp8-absorbed")),
                           ("expanded", os.path.join(shared, "demo-model", "vectors"))):
        for name in names(folder):
            if quick and name not in quick:
                left.append(name)
                continue
            v = Vector(folder, name, "demo", origin)
            if v.count >= LONG and not long:
                left.append(f"{name} (--long)")
                continue
            check_vector(checker, v, quick, False)
    return left


def quick_names(args, tally):
    """None: all."""
    if args.quick and "amx" in args.cpu and "amx_tile" not in open("/proc/cpuinfo").read():
        tally.skip("longer prompts in the tiles' order", "this CPU has no tiles; their plain twin did the short ones")
        return QUICK_BY_TWIN
    return QUICK if args.quick else None


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default=os.path.join(ROOT, "build", "bin", "sluice-run"),
                        help="the program to judge (default build/bin/sluice-run)")
    parser.add_argument("--run-option", action="append", default=[], metavar="OPTION",
                        help="passed on to the program (repeat)")
    parser.add_argument("--shared", help="folder of the shared vectors (default ../shared)")
    parser.add_argument("--own", action="store_true", help="only the project's own vectors")
    parser.add_argument("--quick", action="store_true", help="the subset of `make test`")
    parser.add_argument("--long", action="store_true",
                        help=f"also the shared prompts of {LONG} tokens and more (10 minutes)")
    parser.add_argument("--only", help="only the vectors with this name in theirs")
    parser.add_argument("--properties", action="store_true", help="with --only: the properties too")
    parser.add_argument("--cpu", default=os.environ.get("SLUICE_CPU") or "cpu-f32-v1",
                        help="SLUICE_CPU: variant or numerics id (default: that of the environment, or cpu-f32-v1, "
                             "the vectors' own order); of cpu-amx-v1 limits only")
    parser.add_argument("--not-exact", action="store_true",
                        help="the engine sums in another order: limits only, no bit equality")
    parser.add_argument("--tensor-cores", action="store_true",
                        help="the engine multiplies on FP8 tensor cores: their limits, no plain numerics")
    parser.add_argument("--verbose", action="store_true", help="list passed checks too")
    args = parser.parse_args()
    args.not_exact = args.not_exact or "amx" in args.cpu
    tally, models = Tally(args.verbose), Models(ROOT)
    if not os.path.exists(args.run):
        print(f"check_vectors: {args.run} does not exist (build it first)", file=sys.stderr)
        return 2
    begin, left = time.monotonic(), []
    with tempfile.TemporaryDirectory(dir=models.build) as scratch:
        engine = Engine(args.run, scratch, args.run_option, args.cpu)
        checker = Checker(engine, models, tally, args)
        if args.only:
            return check_only(checker, args)
        quick = quick_names(args, tally)
        left += check_own(checker, quick)
        shared = None if args.own else find_shared(ROOT, args.shared)
        if shared:
            left += check_shared(checker, shared, quick, args.long)
        elif not args.own:
            tally.skip("shared vectors", "../shared is not here; only the project's own were checked")
    if left:
        print(f"not run here, left to a fuller run: {', '.join(left)}")
    print(f"{engine.runs} runs of the engine, {time.monotonic() - begin:.0f} s")
    print(f"{tally.passed} passed, {tally.failed} failed, {tally.skipped} skipped")
    return 1 if tally.failed else 0


def check_only(checker, args):
    """A part, for work on one thing and for mutants.py."""
    data = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data")
    prefixes = {"own": "demo", "rnd1": "random-1", "rnd2": "random-2"}
    places = [(data, name, prefixes[name.split("-")[0]], "own") for name in names(data)]
    shared = find_shared(ROOT, args.shared)
    if shared and not args.own:
        folder = os.path.join(shared, "vectors", "fp8-absorbed")
        places += [(folder, name, "demo", "absorbed") for name in names(folder)]
    found = [p for p in places if args.only in p[1]]
    for place in found:
        check_vector(checker, Vector(*place), False, False)
        if args.properties:
            checker.properties(Vector(*place))
    tally = checker.tally
    print(f"{tally.passed} passed, {tally.failed} failed, {tally.skipped} skipped")
    return 1 if tally.failed or not found else 0


if __name__ == "__main__":
    sys.exit(main())
