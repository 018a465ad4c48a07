#!/usr/bin/env python3
"""Proves the reference: bit-equal with the shared vectors, steps included. See README.md.

--full runs all shared prompts (about 3 minutes); without it abs-raw-3, abs-chat-12 and abs-raw-65.
"""

import argparse
import json
import os
import sys
import time

import numpy as np

from sluice_ref import rope, rounding
from sluice_ref.config import load_config
from sluice_ref.model import Model
from sluice_ref.rounding import E4M3, bf
from sluice_ref.run import Run, run_alone
from sluice_ref.safetensors_io import read_file
from sluice_ref.sums import chain_matmul, chain_sum
from sluice_ref.weights import Weights

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
QUICK = ("abs-raw-3", "abs-chat-12", "abs-raw-65")
FULL = QUICK + ("abs-raw-257", "abs-tool-call", "abs-needle-700-thinking")
RUNS = (("plain", "plain", "f32"), ("fp8", "fp8", "f32"), ("fp8_f64", "fp8", "f64"))


class Tally:
    def __init__(self):
        self.passed = self.failed = self.skipped = 0

    def check(self, name, good, detail=""):
        if good:
            self.passed += 1
        else:
            self.failed += 1
            print(f"FAIL {name} {detail}")


def same_bits(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def check_own_steps(tally):
    """What needs no vectors: the chains against a scalar loop, the roundings against their definition."""
    rng = np.random.default_rng(7)
    for rows, depth, width in ((1, 300, 9), (2, 77, 40), (5, 128, 3), (40, 64, 1500)):
        a = rng.standard_normal((rows, depth)).astype(np.float32)
        b = rng.standard_normal((depth, width)).astype(np.float32)
        got = chain_matmul(a, b)
        for t, n in ((0, 0), (rows - 1, width - 1), (rows // 2, width // 2)):
            acc = np.float32(0)
            for k in range(depth):
                acc = np.float32(acc + np.float32(a[t, k] * b[k, n]))
            tally.check(f"chain {rows}x{depth}x{width}", got[t, n] == acc)
    x = rng.standard_normal((3, 500)).astype(np.float32)
    acc = np.float32(0)
    for v in x[1]:
        acc = np.float32(acc + v)
    tally.check("chain sum", chain_sum(x)[1] == acc)
    finite = E4M3[:127]
    middle = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
    even = np.where(np.arange(126) % 2 == 0, finite[:-1], finite[1:])
    tally.check("e4m3 halves to even", same_bits(rounding.e4m3(middle), even))
    tally.check("e4m3 codes are fixed", same_bits(rounding.e4m3(finite), finite))
    tally.check("e4m3 code round trip",
                same_bits(rounding.e4m3_codes(finite), np.arange(127, dtype=np.uint8)))
    tally.check("bf16 nearest even",
                same_bits(bf(np.float32([1 + 2 ** -8, 1 + 3 * 2 ** -8])),
                          np.float32([1, 1 + 2 ** -6])))


def check_steps(tally, directory, config, weights):
    t = {k: v[1] for k, v in read_file(os.path.join(directory, "steps.safetensors")).items()}
    values, scales = rounding.q128(t["q128.x"])
    tally.check("steps q128 codes", same_bits(rounding.e4m3_codes(values), t["q128.codes"]))
    tally.check("steps q128 scales", same_bits(scales, t["q128.scales"]))
    y = bf(rounding.hadamard(t["hadamard.x"]) * np.float32(128 ** -0.5))
    tally.check("steps hadamard", same_bits(y, t["hadamard.y"]))
    freq = rope.frequencies(config)
    tally.check("steps frequencies", same_bits(freq, t["rope.frequencies"]))
    cos, sin = rope.tables(freq, t["rope.position"])
    tally.check("steps cos", same_bits(cos, t["rope.cos"]))
    tally.check("steps sin", same_bits(sin, t["rope.sin"]))
    tally.check("steps interleaved",
                same_bits(bf(rope.interleaved(t["rope.x"], cos, sin)), t["rope.interleaved"]))
    tally.check("steps half-split",
                same_bits(bf(rope.half_split(t["rope.x"], cos, sin)), t["rope.half_split"]))
    tally.check("steps e4m3 values", same_bits(E4M3[:127], t["e4m3.values_of_codes_0_to_126"]))
    model = Model(config, weights)
    scores = t["select.scores"]
    kept = model.select(scores, np.full(len(scores), scores.shape[1] - 1))
    tally.check("steps select", np.array_equal(kept, t["select.kept"]))
    gate = np.ascontiguousarray(t["route.gate"].T)
    chosen, weight = model.route(t["route.x"], gate, t["route.bias"])
    tally.check("steps route experts", np.array_equal(chosen, t["route.experts"]))
    tally.check("steps route weights", same_bits(weight, t["route.weights"]))
    chosen, weight = model.route(t["route.x"][:1], gate, np.full(gate.shape[1], -1, np.float32))
    tally.check("steps route equal experts", np.array_equal(chosen, t["route.equal_experts"]))
    tally.check("steps route equal weights", same_bits(weight, t["route.equal_weights"]))


def without_text(fields):
    fields = json.loads(json.dumps(fields))
    fields["greedy"].pop("text", None)
    return fields


def check_run(tally, label, run, fields, tensors, tag):
    want = without_text(fields)
    got = without_text(run.fields())
    for key in want:
        tally.check(f"{label} json {key}", got[key] == want[key])
    have = {k: v for k, v in run.tensors().items()}
    have["layer_x"], have["layer_res"] = run.layer_inputs()
    have["hidden_all"], have["logits_all"] = run.hidden_all(), run.logits
    have["kept_bits"] = run.main_kept_bits()
    if run.caches_last4:
        have["cache_latent_last4"], have["cache_index_last4"] = run.caches_last4
    for name, (_, array) in tensors.items():
        prefix, _, short = name.partition(".")
        if prefix == tag and short in have:
            tally.check(f"{label} {short}", same_bits(np.ascontiguousarray(have[short]), array))


def check_alone(tally, label, model, run):
    """A layer fed with its own stored input gives the stored output, and chunks change nothing."""
    layer = min(3, model.config.layers - 1)
    x, res, kept, _ = run_alone(model, layer, *run.states[layer])
    tally.check(f"{label} layer alone", same_bits(x, run.states[layer + 1][0])
                and same_bits(res, run.states[layer + 1][1]))
    caches, parts = model.new_caches(), []
    for at in range(0, run.count, 7):
        parts.append(model.forward(run.ids[at:at + 7], caches))
    tally.check(f"{label} chunks of 7", same_bits(np.concatenate(parts), run.final))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="all shared prompts")
    parser.add_argument("--shared", default=os.path.join(ROOT, "..", "shared"),
                        help="folder with vectors/fp8-absorbed (default ../shared)")
    parser.add_argument("--model", default=os.path.join(ROOT, "models", "demo"))
    args = parser.parse_args()
    shared = os.path.join(args.shared, "vectors", "fp8-absorbed")
    if not os.path.isdir(shared):  # a worktree lies deeper than a clone
        shared = os.path.join(ROOT, "..", "..", "shared", "vectors", "fp8-absorbed")
    tally = Tally()
    check_own_steps(tally)
    if not os.path.isdir(shared):
        print("SKIP: no shared vectors (../shared/vectors/fp8-absorbed); only the single steps were checked")
        tally.skipped += len(FULL if args.full else QUICK)
    else:
        config = load_config(args.model)
        weights = Weights(args.model, config)
        check_steps(tally, shared, config, weights)
        for name in FULL if args.full else QUICK:
            with open(os.path.join(shared, name + ".json"), encoding="utf-8") as f:
                vector = json.load(f)
            tensors = read_file(os.path.join(shared, name + ".safetensors"))
            for tag, numerics, order in RUNS:
                begin = time.monotonic()
                fields = vector["fp8_f64_sums"] if tag == "fp8_f64" else vector["modes"][tag]
                model = Model(config, weights, numerics, order)
                run = Run(model, vector["token_ids"], len(fields["greedy"]["ids"]))
                check_run(tally, f"{name} {tag}", run, fields, tensors, tag)
                if tag == "fp8" and run.count < 100:
                    check_alone(tally, f"{name} {tag}", model, run)
                print(f"{name} {tag}: {time.monotonic() - begin:.1f} s")
    print(f"{tally.passed} passed, {tally.failed} failed, {tally.skipped} skipped")
    return 1 if tally.failed else 0


if __name__ == "__main__":
    sys.exit(main())
