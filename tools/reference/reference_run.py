#!/usr/bin/env python3
"""A stand-in for `sluice-run` made of the reference: same options (those the vectors need), same dump.

Serves to try tests/vectors/check_vectors.py without the C engine (`--run tools/reference/reference_run.py`),
and, with --error, to see that a wrong engine is noticed. Slow: for short prompts.
"""

import argparse
import json
import os
import sys

import pinned  # noqa: F401 -- before NumPy
import numpy as np

from sluice_ref import model as model_module
from sluice_ref import rope, rounding
from sluice_ref.config import load_config
from sluice_ref.model import Model, Record
from sluice_ref.rounding import bf16_bits, bf16_widen
from sluice_ref.run import kept_bits
from sluice_ref.safetensors_io import read_file, write_file
from sluice_ref.weights import Weights

ERRORS = ("hadamard", "rope", "ties", "gate", "scale", "latent", "residual", "bias-weight")


class WrongModel(Model):
    """One error on purpose."""

    error = None

    def select(self, scores, positions):
        if self.error != "ties":
            return super().select(scores, positions)
        kept = [np.sort(np.argsort(-(row[:p + 1] + np.float32(0))[::-1], kind="stable")
                        [:self.config.index_topk]) for row, p in zip(scores, positions)]
        kept = [np.sort(p - k) for k, p in zip(kept, positions)]
        width = max(map(len, kept))
        return np.stack([np.pad(k, (0, width - len(k)), constant_values=-1) for k in kept])

    def route(self, n, router, bias):
        if self.error == "gate":
            real, np_inf = np.full_like, np.inf
            try:  # masked groups get 0
                model_module.np.full_like = lambda a, v: real(a, 0 if v == -np_inf else v)
                return super().route(n, router, bias)
            finally:
                model_module.np.full_like = real
        chosen, weight = super().route(n, router, bias)
        if self.error == "bias-weight":
            s = np.take_along_axis(model_module.sigmoid(self.sums.matmul(n, router)) + bias, chosen, 1)
            weight = s / s.sum(axis=1, keepdims=True) * np.float32(self.config.routed_scale)
        return chosen, weight

    def norm(self, x, weight, res=None):
        out, s = super().norm(x, weight, res)
        if self.error == "residual" and res is not None:
            out, _ = super().norm(self.bf(x + res), weight)
        return out, s

    def fill_cache(self, n, w, cache, cos, sin):
        if self.error != "latent":
            super().fill_cache(n, w, cache, cos, sin)
            return
        super().fill_cache(n, w, cache, cos, sin)
        kv = self.linear(n, w.kv_a)
        latent = self.norm(np.ascontiguousarray(kv[:, :self.config.kv_lora]), w.kv_norm)[0]
        cache.latent[-len(n):] = latent


def plant(error):
    if error == "hadamard":
        model_module.hadamard = lambda x: x * np.float32(x.shape[-1] ** 0.5)
    elif error == "rope":
        rope.half_split, rope.interleaved = rope.interleaved, rope.half_split
    elif error == "scale":
        real = rounding.q128
        model_module.q128 = lambda x, pow2=True, group=128: real(x, False, group)
    WrongModel.error = error


def mtp_rows(model, run_h, ids, caches, record):
    g = model.mtp(ids, run_h, caches, record)
    logits = model.logits(g)
    return np.argmax(logits, axis=1).astype(np.int32), logits


def generate(args, model):
    """(emitted ids, dump)."""
    c, caches = model.config, model.new_caches()
    records, states = [Record() for _ in caches], []
    chunk = args.chunk_tokens or len(args.ids)
    parts = []
    for at in range(0, len(args.ids), chunk):
        parts.append(model.forward(args.ids[at:at + chunk], caches, records, states))
    final = [np.concatenate(parts)]
    logits = [model.logits(final[0])]
    n, rows = len(args.ids), slice(max(0, len(args.ids) - 4), len(args.ids))
    dump = {}
    if model.fp8:
        dump["cache_latent_last4"] = np.stack([k.latent_bytes(rows) for k in caches[:c.layers]])
        dump["cache_index_last4"] = np.stack([k.index_bytes(rows) for k in caches[:c.layers]])
    tokens, emitted = list(args.force_ids), []
    while len(tokens) < len(args.force_ids) + args.max_tokens:
        if len(logits) > len(tokens):
            tokens.append(int(np.argmax(logits[-1][-1])))
            emitted.append(tokens[-1])
            if tokens[-1] == c.eos and not args.ignore_eos:
                break
        if len(logits) <= len(args.force_ids) + args.max_tokens - 1:
            final.append(model.forward([tokens[len(logits) - 1]], caches))
            logits.append(model.logits(final[-1]))
    after = (args.ids + tokens)[1:]
    h = np.concatenate(final)[:len(after)]
    drafts, draft_logits = mtp_rows(model, h[:n], after[:n], caches, records[c.mtp_index])
    for i in range(n, len(after)):
        drafts = np.append(drafts, mtp_rows(model, h[i:i + 1], after[i:i + 1], caches, None)[0])
    merge_records(records)
    steps = [states[i::c.layers + 1] for i in range(c.layers + 1)]
    hidden = np.stack([np.concatenate([x + r for x, r in part]) for part in steps[1:]])
    dump.update({
        "logits": np.concatenate(logits), "logits_last4": logits[0][-4:], "hidden_all": hidden,
        "hidden_last": hidden[:, -1], "normed_last": final[0][-1], "mtp_drafts": drafts,
        "mtp_logits_last": draft_logits[-1],
        "kept_bits": np.stack([kept_bits(r.kept[0], n) for r in records[:c.layers]]),
        "experts": np.stack([r.experts[0] for r in records[:c.layers] if r.experts])})
    for position in args.dump_positions or range(max(0, n - 3), n):
        for layer, record in enumerate(records):
            kept = record.kept[0][position]
            dump[f"index_set_{layer}_{position}"] = kept[kept >= 0].astype(np.int32)
    return emitted, dump


def merge_records(records):
    """Lists of the chunks -> one list."""
    for r in records:
        width = max(k.shape[1] for k in r.kept)
        r.kept = [np.concatenate([np.pad(k, ((0, 0), (0, width - k.shape[1])), constant_values=-1)
                                  for k in r.kept])]
        r.experts = [np.concatenate(r.experts)] if r.experts else []


def run_layers(args, model):
    begin, end = map(int, args.layers.split(":"))
    stored = read_file(args.hidden_in)
    x, res = (bf16_widen(stored[name][1]) for name in ("layer_x", "layer_res"))
    caches, kept, experts = model.new_caches(), [], []
    for layer in range(begin, end):
        record = Record()
        x, res = model.layer(layer, x, res, caches[layer], record)
        kept.append(kept_bits(record.kept[0], len(x)))
        experts += record.experts
    dump = {"layer_x": bf16_bits(x), "layer_res": bf16_bits(res), "kept_bits": np.stack(kept)}
    if experts:
        dump["experts"] = np.stack(experts)
    return dump


def main():
    def ids(text):
        return [int(i) for i in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--ids", type=ids)
    parser.add_argument("--force-ids", type=ids, default=[])
    parser.add_argument("--max-tokens", type=int, default=1)
    parser.add_argument("--temperature", type=float, default=0)
    parser.add_argument("--ignore-eos", action="store_true")
    parser.add_argument("--chunk-tokens", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--numerics", choices=("fp8", "plain"), default="fp8")
    parser.add_argument("--dump")
    parser.add_argument("--dump-positions", type=ids)
    parser.add_argument("--layers")
    parser.add_argument("--hidden-in")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--order", choices=("f32", "f64"), default="f32")
    parser.add_argument("--error", choices=ERRORS)
    args = parser.parse_args()
    if args.error:
        plant(args.error)
    config = load_config(args.model)
    model = WrongModel(config, Weights(args.model, config), args.numerics, args.order)
    if args.layers:
        emitted, dump = [], run_layers(args, model)
    else:
        emitted, dump = generate(args, model)
    if args.dump:
        write_file(args.dump, dump)
    if args.json:
        from make_vectors import decoder
        print(json.dumps({"prompt_ids": args.ids, "ids": emitted,
                          "text": decoder(args.model)(emitted), "finish_reason": "length"}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
