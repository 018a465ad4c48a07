"""The forward pass: section 3 to 5 of the specification, absorbed attention everywhere.

numerics "fp8": every rounding of the specification. "plain": float32 throughout, no bf16 rounding, no Q128,
no quantisation of latent and indexer, no Hadamard. The order of free sums is an argument (sums.py).
"""

import numpy as np

from . import rope
from .rounding import bf, bf16_bits, e4m3_codes, hadamard, q128
from .sums import Sums

F32 = np.float32
CHUNK = 16  # query tokens attended to at once; affects memory only


def exp32(x):
    with np.errstate(over="ignore"):
        return np.exp(x.astype(np.float64)).astype(np.float32)


def sigmoid(z):
    with np.errstate(over="ignore"):
        return (F32(1) / (F32(1) + exp32(-z))).astype(np.float32)


class LayerCache:
    """Rows of one layer, widened to float32: latent, rotary key, indexer key and scale."""

    def __init__(self, config):
        self.rows = 0
        self.latent = np.zeros((0, config.kv_lora), np.float32)
        self.latent_scale = np.zeros((0, config.kv_lora // 128), np.float32)
        self.latent_codes = np.zeros((0, config.kv_lora), np.float32)
        self.rope_key = np.zeros((0, config.rope), np.float32)
        self.index_key = np.zeros((0, config.index_dim), np.float32)
        self.index_scale = np.zeros((0,), np.float32)

    def append(self, name, rows):
        setattr(self, name, np.concatenate([getattr(self, name), rows]))

    def latent_bytes(self, rows):
        """Bytes of section 4.7; fp8 only."""
        codes = e4m3_codes(self.latent_codes[rows])
        scales = np.ascontiguousarray(self.latent_scale[rows]).view(np.uint8)
        keys = bf16_bits(self.rope_key[rows]).view(np.uint8)
        return np.concatenate([codes, scales, keys], axis=1)

    def index_bytes(self, rows):
        scale = np.ascontiguousarray(self.index_scale[rows][:, None]).view(np.uint8)
        return np.concatenate([e4m3_codes(self.index_key[rows]), scale], axis=1)


class Record:
    """What a forward pass of one layer is asked to remember: lists, one entry a call."""

    def __init__(self):
        self.kept, self.experts, self.scores = [], [], []


class Model:
    def __init__(self, config, weights, numerics="fp8", order="f32"):
        self.config, self.weights = config, weights
        self.fp8 = numerics == "fp8"
        self.sums = Sums(order)
        self.freq = rope.frequencies(config)
        self.scale = rope.softmax_scale(config)

    def new_caches(self):
        return [LayerCache(self.config) for _ in self.weights.layers]

    # --- single steps ---

    def bf(self, x):
        return bf(x) if self.fp8 else x

    def norm(self, x, weight, res=None):
        """RMSNorm; returns (output, unrounded sum)."""
        s = x if res is None else x + res
        squares = s.astype(np.float64) ** 2 if self.sums.double else s * s
        mean = self.sums.total(squares) / F32(s.shape[-1])
        r = F32(1) / np.sqrt(mean + F32(self.config.eps))
        return self.bf(weight * (s * r[..., None])), s

    def linear(self, x, w):
        if not self.fp8:
            return self.sums.matmul(x, w.full)
        codes, weight_scales = w.codes, w.scales  # looked at once: they may be made by looking
        if codes is None:
            return bf(self.sums.matmul(x, w.full))
        values, scales = q128(x, self.config.pow2_scales)
        acc = np.zeros((x.shape[0], codes.shape[1]), np.float32)
        for b in range(x.shape[1] // 128):
            part = slice(128 * b, 128 * b + 128)
            p = self.sums.matmul(np.ascontiguousarray(values[:, part]), codes[part])
            acc += p * (scales[:, b, None] * weight_scales[b])
        return bf(acc)

    def mlp(self, x, w):
        g, u = self.linear(x, w.gate), self.linear(x, w.up)
        with np.errstate(over="ignore"):
            a = self.bf((g / (F32(1) + exp32(-g))) * u)
        return self.linear(a, w.down)

    def route(self, n, router, bias):
        """(experts [T,k] ascending, weights [T,k])."""
        c = self.config
        sg = sigmoid(self.sums.matmul(n, router))
        b = sg + bias
        grouped = b.reshape(len(n), c.groups, -1)
        best = np.sort(grouped, axis=-1)
        group_score = best[..., -1] + best[..., -2]
        kept = np.argsort(-group_score, axis=1, kind="stable")[:, :c.groups_kept]
        masked = np.full_like(grouped, -np.inf)
        rows = np.arange(len(n))[:, None]
        masked[rows, kept] = grouped[rows, kept]
        order = np.argsort(-masked.reshape(len(n), -1), axis=1, kind="stable")
        chosen = np.sort(order[:, :c.experts_per_token], axis=1)
        s = np.take_along_axis(sg, chosen, axis=1)
        total = np.add.accumulate(s, axis=1)[:, -1:]
        return chosen.astype(np.int32), (s / total) * F32(c.routed_scale)

    def moe(self, n, w, record):
        chosen, weight = self.route(n, w.router, w.router_bias)
        if record is not None:
            record.experts.append(chosen)
        y = np.zeros_like(n)
        for e in range(self.config.experts):  # ascending: the order of the sum is part of the definition
            rows, slot = np.nonzero(chosen == e)
            if len(rows):
                y[rows] += weight[rows, slot][:, None] * self.mlp(n[rows], w.experts[e])
        return self.bf(y + self.mlp(n, w.shared))

    # --- attention ---

    def index_keys(self, n, w, cos, sin):
        z = self.linear(n, w.index_k)
        size = F32(self.config.index_dim)
        mean = self.sums.total(z) / size
        d = z - mean[:, None]
        squares = d.astype(np.float64) ** 2 if self.sums.double else d * d
        var = self.sums.total(squares) / size
        k = self.bf((d / np.sqrt(var + F32(1e-6))[:, None]) * w.index_norm_w + w.index_norm_b)
        return self.index_rotate(k, cos, sin)

    def index_rotate(self, x, cos, sin):
        """Rope of the first dims, Hadamard, Q128: (values, scales)."""
        r, d = self.config.rope, self.config.index_dim
        x = np.concatenate([self.bf(rope.half_split(x[..., :r], cos, sin)), x[..., r:]], axis=-1)
        if not self.fp8:
            return x, np.ones(x.shape[:-1], np.float32)
        values, scales = q128(bf(hadamard(x) * F32(d ** -0.5)), self.config.pow2_scales, d)
        return values, scales[..., 0]

    def index_scores(self, n, qr, w, cache, cos, sin):
        """I(t, s) for all rows of the cache, [T, S]."""
        c = self.config
        q = self.linear(qr, w.index_q).reshape(len(n), c.index_heads, c.index_dim)
        q, sq = self.index_rotate(q, cos[:, None], sin[:, None])
        wt = self.sums.matmul(n, w.index_weights) * F32(c.index_heads ** -0.5)
        a = (wt * sq) * F32(c.index_dim ** -0.5)
        total = np.zeros((len(n), cache.rows), np.float32)
        keys = np.ascontiguousarray(cache.index_key.T)
        for h in range(c.index_heads):
            dot = self.sums.matmul(np.ascontiguousarray(q[:, h]), keys)
            total += np.maximum(dot, F32(0)) * a[:, h, None]
        return total * cache.index_scale

    def select(self, scores, positions):
        """S(t) as [T, width] ascending, padded with -1 at the end."""
        k = self.config.index_topk
        columns = np.arange(scores.shape[1])
        s = np.where(columns <= positions[:, None], -(scores + F32(0)), np.inf)
        order = np.argsort(s, axis=1, kind="stable")[:, :k]
        big = scores.shape[1]
        order = np.where(np.arange(order.shape[1]) < np.minimum(k, positions + 1)[:, None], order, big)
        order = np.sort(order, axis=1)
        return np.where(order == big, -1, order)

    def attend(self, q_hat, q_pe, kept, cache):
        """Attention of each token over its own list, [T,H,latent]."""
        width = int(np.max(np.sum(kept >= 0, axis=1)))
        kept = kept[:, :width]
        rows = np.maximum(kept, 0)
        latent, keys = cache.latent[rows], cache.rope_key[rows]
        score = (self.sums.scores(q_hat, latent.transpose(0, 2, 1))
                 + self.sums.scores(q_pe, keys.transpose(0, 2, 1))) * self.scale
        score = np.where((kept >= 0)[:, None], score, F32(-np.inf)).astype(np.float32)
        e = exp32(score - score.max(axis=-1, keepdims=True))
        p = e / self.sums.total(e)[..., None]
        return self.bf(self.sums.mix(p, latent))

    def fill_cache(self, n, w, cache, cos, sin):
        c = self.config
        kv = self.linear(n, w.kv_a)
        latent = self.norm(np.ascontiguousarray(kv[:, :c.kv_lora]), w.kv_norm)[0]
        cache.append("rope_key", self.bf(rope.interleaved(kv[:, c.kv_lora:], cos, sin)))
        if self.fp8:
            values, scales = q128(latent, c.pow2_scales)
            cache.append("latent_codes", values)
            cache.append("latent_scale", scales)
            latent = bf(values * np.repeat(scales, 128, axis=1))
        cache.append("latent", latent)
        keys, scales = self.index_keys(n, w, cos, sin)
        cache.append("index_key", keys)
        cache.append("index_scale", scales)
        cache.rows += len(n)

    def attention(self, n, w, cache, positions, record, rows=slice(None)):
        """Of the chosen rows; the cache gets all."""
        c = self.config
        cos, sin = rope.tables(self.freq, positions)
        self.fill_cache(n, w, cache, cos, sin)
        n, cos, sin, positions = n[rows], cos[rows], sin[rows], positions[rows]
        count = len(n)
        qr = self.norm(self.linear(n, w.q_a), w.q_norm)[0]
        q = self.linear(qr, w.q_b).reshape(count, c.heads, c.nope + c.rope)
        q_pe = self.bf(rope.interleaved(q[..., c.nope:], cos[:, None], sin[:, None]))
        q_hat = np.stack([self.bf(self.sums.matmul(np.ascontiguousarray(q[:, h, :c.nope]), w.w_uk[h]))
                          for h in range(c.heads)], axis=1)
        scores = self.index_scores(n, qr, w, cache, cos, sin)
        kept = self.select(scores, positions)
        if record is not None:
            record.kept.append(kept)
            record.scores.append(scores)
        o = np.concatenate([self.attend(q_hat[t:t + CHUNK], q_pe[t:t + CHUNK], kept[t:t + CHUNK], cache)
                            for t in range(0, count, CHUNK)])
        v = np.stack([self.bf(self.sums.matmul(np.ascontiguousarray(o[:, h]), w.w_uv[h]))
                      for h in range(c.heads)], axis=1)
        return self.linear(v.reshape(count, -1), w.o)

    # --- the model ---

    def layer(self, index, x, res, cache, record=None, rows=slice(None)):
        """One decoder layer on rows that follow those in the cache: (x, res), of the chosen rows only (a row
        depends on the others through the cache alone)."""
        w = self.weights.layers[index]
        positions = cache.rows + np.arange(len(x))
        n, s = self.norm(x, w.input_norm, res)
        res = self.bf(s)
        x = self.attention(n, w, cache, positions, record, rows)
        n, s = self.norm(x, w.post_norm, res[rows])
        res = self.bf(s)
        x = self.mlp(n, w.dense) if w.dense is not None else self.moe(n, w, record)
        return x, res

    def logits(self, h):
        return self.sums.matmul(h, self.weights.head)

    def forward(self, ids, caches, records=None, states=None):
        """h_final of the rows `ids` that follow those in the caches.

        records: a Record per layer; states: a list that gets (x, res) entering each layer and model.norm.
        """
        x, res = self.weights.embed[np.asarray(ids)], None
        for i in range(self.config.layers):
            if states is not None:
                states.append((x, np.zeros_like(x) if res is None else res))
            x, res = self.layer(i, x, res, caches[i], records[i] if records else None)
        if states is not None:
            states.append((x, res))
        return self.norm(x, self.weights.norm, res)[0]

    def mtp_layer(self, embedded, h, cache, record=None, rows=slice(None)):
        """(x, res) leaving the MTP layer: `embedded` are the next tokens' embeddings, h is h_final."""
        w = self.weights
        left = self.norm(embedded, w.enorm)[0]
        right = self.norm(h, w.hnorm)[0]
        u = self.bf(self.sums.matmul(np.concatenate([left, right], axis=1), w.eh))
        return self.layer(self.config.mtp_index, u, None, cache, record, rows)

    def mtp(self, next_ids, h, caches, record=None):
        """g of MTP rows that follow those in its cache; h is h_final of the same positions."""
        w, i = self.weights, self.config.mtp_index
        v, res = self.mtp_layer(w.embed[np.asarray(next_ids)], h, caches[i], record)
        return self.norm(v, w.mtp_norm, res)[0]
