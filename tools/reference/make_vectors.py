#!/usr/bin/env python3
"""Makes tests/vectors/data from tests/vectors/prompts.json; --check only compares (about 3 minutes)."""

import argparse
import json
import os
import sys
import tempfile

import numpy as np

from make_random import ROOT, ensure
from sluice_ref.config import load_config
from sluice_ref.model import Model
from sluice_ref.random_model import prompt_ids
from sluice_ref.rounding import bf16_bits
from sluice_ref.run import Run, digits, kept_bits, row_checksums, run_alone
from sluice_ref.safetensors_io import write_file
from sluice_ref.weights import Weights

VECTORS = os.path.join(ROOT, "tests", "vectors")
RUNS = {"plain": ("plain", "f32"), "fp8": ("fp8", "f32"), "fp8_f64": ("fp8", "f64")}
PLAIN_TOKENS, FP8_TOKENS, F64_TOKENS = 64, 32, 8


def decoder(directory):
    """Token ids -> text with the model's own tokenizer.json; no dependency needed for that."""
    with open(os.path.join(directory, "tokenizer.json"), encoding="utf-8") as f:
        raw = json.load(f)
    same = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in same]
    byte = {chr(b): b for b in same}
    byte.update({chr(0x100 + i): b for i, b in enumerate(rest)})
    text = {i: bytes(byte[ch] for ch in token) for token, i in raw["model"]["vocab"].items()
            if all(ch in byte for ch in token)}
    text.update({t["id"]: t["content"].encode() for t in raw["added_tokens"]})
    return lambda ids: b"".join(text[i] for i in ids).decode("utf-8", "replace")


class Loaded:
    """A model folder, its weights and one Model per numerics."""

    def __init__(self, name):
        if name == "demo":
            directory = os.path.join(ROOT, "models", "demo")
        else:
            directory = os.path.join(ROOT, "build", name)
            ensure(int(name.rpartition("-")[2]), directory)
        config = load_config(directory)
        weights = Weights(directory, config)
        self.models = {tag: Model(config, weights, *run) for tag, run in RUNS.items()}
        self.decode = decoder(directory)


def layer_tensors(entry, loaded, runs):
    """Tensors for layers run alone: all of them in both orders, or chosen ones on the fp8 input."""
    out = {}
    if entry.get("layers") == "all":
        for tag in ("fp8", "fp8_f64"):
            out[tag + ".layer_x"], out[tag + ".layer_res"] = runs[tag].layer_inputs()
        return out
    for layer in entry.get("layers", []):
        x, res = runs["fp8"].states[layer]
        if layer > 0:  # what enters layer 0 is the embedding and needs no storing
            out[f"alone.{layer}.in_x"], out[f"alone.{layer}.in_res"] = bf16_bits(x), bf16_bits(res)
        for tag in ("fp8", "fp8_f64"):
            ax, ares, kept, experts = run_alone(loaded.models[tag], layer, x, res)
            name = f"alone.{layer}.{tag}."
            if tag == "fp8" or entry["model"] == "demo" and len(x) < 100:
                out[name + "x"], out[name + "res"] = bf16_bits(ax), bf16_bits(ares)
            out[name + "kept_bits"] = kept_bits(kept, len(x))
            if experts is not None:
                out[name + "experts"] = experts
    return out


def main_tensors(entry, runs):
    out = {f"plain.{k}": v for k, v in runs["plain"].tensors().items()}
    fp8 = runs["fp8"]
    drop = ("logits_last4", "mtp_logits_last") if entry.get("small") else ()
    out.update({f"fp8.{k}": v for k, v in fp8.tensors().items() if k not in drop})
    out["fp8.hidden_crc"] = fp8.hidden_checksums()
    out["fp8.logits_crc"] = row_checksums(fp8.logits)
    out["fp8.mtp_logits_last_crc"] = row_checksums(fp8.mtp_logits_last[None])
    out["fp8.cache_latent_last4"], out["fp8.cache_index_last4"] = fp8.caches_last4
    out["fp8.experts"] = fp8.experts().astype(np.uint8)
    if entry["model"] != "demo":
        out["fp8.kept_bits"] = fp8.main_kept_bits()
    return out


def make(entry, loaded, out_dir):
    ids = entry["ids"] if "ids" in entry else prompt_ids(int(entry["model"][-1]), entry["seed"],
                                                         entry["count"])
    counts = {"plain": PLAIN_TOKENS, "fp8": FP8_TOKENS, "fp8_f64": F64_TOKENS}
    runs = {tag: Run(model, ids, counts[tag]) for tag, model in loaded.models.items()}
    out = {"name": entry["name"], "model": entry["model"], "n_tokens": len(ids),
           "prompt": entry.get("prompt"), "token_ids": ids,
           "modes": {tag: runs[tag].fields(loaded.decode) for tag in ("plain", "fp8")}}
    f64 = runs["fp8_f64"].fields(loaded.decode)
    f64.pop("index_sets")
    out["fp8_f64_sums"] = f64
    diff = np.abs(runs["fp8"].logits[-4:] - runs["fp8_f64"].logits[-4:]).max()
    out["sum_order"] = {"last4_max_abs_diff": digits(diff)}
    if "expect" in entry:
        found = {tag: entry["expect"] in loaded.decode(run.greedy)
                 for tag, run in runs.items() if tag != "fp8_f64"}
        if not all(found.values()):
            raise SystemExit(f"{entry['name']}: the answer lacks {entry['expect']}: "
                             f"{loaded.decode(runs['fp8'].greedy)}")
        out["expect"] = {"text": entry["expect"], "found": found}
    base = os.path.join(out_dir, entry["name"])
    with open(base + ".json", "w", encoding="utf-8") as f:
        json.dump(out, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")
    write_file(base + ".safetensors", main_tensors(entry, runs))
    layers = layer_tensors(entry, loaded, runs)
    if layers:
        write_file(base + ".layers.safetensors", layers)


def compare(made, stored):
    different = []
    for name in sorted(set(os.listdir(made)) | set(os.listdir(stored))):
        paths = [os.path.join(d, name) for d in (made, stored)]
        if not all(map(os.path.exists, paths)):
            different.append(name)
            continue
        contents = [open(p, "rb").read() for p in paths]
        if contents[0] != contents[1]:
            different.append(name)
    return different


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="make them elsewhere and compare")
    parser.add_argument("--only", help="make only the vector of this name")
    args = parser.parse_args()
    with open(os.path.join(VECTORS, "prompts.json"), encoding="utf-8") as f:
        entries = json.load(f)
    data = os.path.join(VECTORS, "data")
    with tempfile.TemporaryDirectory() as scratch:
        target = scratch if args.check else data
        loaded, name = None, None
        for entry in entries:
            if args.only not in (None, entry["name"]):
                continue
            if entry["model"] != name:
                name = entry["model"]
                loaded = Loaded(name)
            make(entry, loaded, target)
            print(entry["name"], flush=True)
        if args.check:
            different = compare(scratch, data)
            print(f"{len(different)} files differ" + "".join(f"\n  {d}" for d in different))
            return 1 if different else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
