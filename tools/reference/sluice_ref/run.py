"""Runs one prompt through one numerics: greedy tokens, MTP drafts, index sets, tensors to store."""

import zlib

import numpy as np

from .model import Record
from .rounding import bf16_bits


def digits(value, count=7):
    return float(f"%.{count}g" % float(value))


def row_checksums(x):
    """CRC-32 of the bytes of each row, as int32."""
    return np.array([zlib.crc32(np.ascontiguousarray(row).tobytes()) for row in x],
                    np.uint32).view(np.int32)


def kept_bits(kept, count):
    """Lists [T,width] padded with -1 -> bits [T, ceil(count/8)], bit s%8 of byte s/8."""
    flags = np.zeros((len(kept), count + 1), np.uint8)
    flags[np.arange(len(kept))[:, None], kept] = 1  # -1 lands in the spare column
    return np.packbits(flags[:, :count], axis=1, bitorder="little")


def index_positions(count, topk):
    if count <= topk:
        return []
    if count - 15 < topk:
        return [count - 3, count - 2, count - 1]
    return [count - 15, count - 8, count - 1]


class Run:
    """A prompt, then `greedy` tokens, none of them stopping it."""

    def __init__(self, model, ids, greedy):
        self.model, self.ids, self.count = model, list(ids), len(ids)
        c = model.config
        caches = model.new_caches()
        self.records = [Record() for _ in caches]
        self.states = []
        h = model.forward(self.ids, caches, self.records, self.states)
        self.final = h
        self.caches_last4 = self._cache_rows(caches) if model.fp8 else None
        logits = model.logits(h)
        self.logits = logits
        self.greedy, self.gaps = [], []
        drafts = []
        mtp_h, record = h, self.records[c.mtp_index] if c.mtp_layers else None
        tokens = self.ids[1:]
        for i in range(greedy):
            best = int(np.argmax(logits[-1]))
            second = np.partition(logits[-1], -2)[-2]
            self.greedy.append(best)
            self.gaps.append(digits(logits[-1][best] - second, 5))
            if c.mtp_layers and i < max(1, greedy - 1):
                g = model.mtp(tokens + [best], mtp_h, caches, record)
                mtp_logits = model.logits(g)
                drafts += list(np.argmax(mtp_logits, axis=1))
                if i == 0:
                    self.mtp_logits_last = mtp_logits[-1]
                record = None
            if i + 1 < greedy:
                tokens = []
                mtp_h = model.forward([best], caches)
                logits = model.logits(mtp_h)
        self.drafts = [int(d) for d in drafts]

    def _cache_rows(self, caches):
        rows = slice(max(0, self.count - 4), self.count)
        main = caches[:self.model.config.layers]
        return (np.stack([c.latent_bytes(rows) for c in main]),
                np.stack([c.index_bytes(rows) for c in main]))

    # --- JSON ---

    def fields(self, decode=None, top=20):
        last = self.logits[-1]
        order = np.argsort(-last, kind="stable")[:top]
        out = {"top20": {"ids": [int(i) for i in order], "logits": [digits(last[i]) for i in order]},
               "greedy": {"ids": self.greedy}}
        if decode is not None:
            out["greedy"]["text"] = decode(self.greedy)
        out["greedy"]["gap_to_second"] = self.gaps
        out["mtp"] = self._mtp_fields()
        out["layers"] = [self._layer_fields(i) for i in range(self.model.config.layers)]
        out["index_sets"] = self._index_fields()
        return out

    def _mtp_fields(self):
        first = max(0, self.count - 8)
        drafts = self.drafts[self.count - 1:]
        hits = sum(d == t for d, t in zip(drafts, self.greedy[1:]))
        return {"drafts_in_greedy": drafts, "accepted": hits, "of": len(drafts),
                "draft_after_prompt_positions": {"first_position": first,
                                                 "ids": self.drafts[first:self.count]}}

    def residual(self, layer):
        x, res = self.states[layer + 1]
        return x + res

    def _layer_fields(self, layer):
        s = self.residual(layer)
        experts = self.records[layer].experts
        return {"layer": layer, "last_first8": [digits(v, 6) for v in s[-1, :8]],
                "last_l2": digits(np.linalg.norm(s[-1].astype(np.float64))),
                "all_l2": digits(np.linalg.norm(s.astype(np.float64))),
                "all_abs_mean": digits(np.abs(s.astype(np.float64)).mean()),
                "last_experts": [int(e) for e in experts[0][-1]] if experts else None}

    def _index_fields(self):
        out = []
        for layer, record in enumerate(self.records):
            for position in index_positions(self.count, self.model.config.index_topk):
                kept = record.kept[0][position]
                kept = kept[kept >= 0]
                scores = record.scores[0][position, :position + 1]
                left = np.delete(scores, kept)
                out.append({"layer": layer, "position": position, "kept": [int(k) for k in kept],
                            "lowest_kept": digits(scores[kept].min()),
                            "highest_left_out": digits(left.max()) if len(left) else None})
        return out

    # --- tensors ---

    def layer_inputs(self):
        return (np.stack([bf16_bits(x) for x, _ in self.states]),
                np.stack([bf16_bits(res) for _, res in self.states]))

    def main_kept_bits(self):
        layers = self.model.config.layers
        return np.stack([kept_bits(r.kept[0], self.count) for r in self.records[:layers]])

    def experts(self):
        return np.stack([r.experts[0] for r in self.records[:self.model.config.layers] if r.experts])

    def hidden_all(self):
        return np.stack([self.residual(i) for i in range(self.model.config.layers)])

    def hidden_checksums(self):
        return np.stack([row_checksums(layer) for layer in self.hidden_all()])

    def tensors(self):
        """The small tensors every vector holds."""
        out = {"logits_last4": self.logits[-4:], "hidden_last": self.hidden_all()[:, -1],
               "normed_last": self.final[-1]}
        if self.model.config.mtp_layers:
            out["mtp_logits_last"] = self.mtp_logits_last
        return out


def run_alone(model, layer, x, res):
    """One layer on stored inputs (float32 arrays) from an empty cache: x, res, kept, experts or None."""
    record = Record()
    cache = model.new_caches()[layer]
    x, res = model.layer(layer, x, res, cache, record)
    return x, res, record.kept[0], record.experts[0] if record.experts else None
