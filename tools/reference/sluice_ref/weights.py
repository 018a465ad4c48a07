"""Turns a checkpoint into the arrays the forward pass multiplies by (sections 1 and 2)."""

from dataclasses import dataclass
from typing import Optional

import numpy as np

from .rounding import E4M3, bf16_widen
from .safetensors_io import MappedCheckpoint, read_checkpoint

F32 = np.float32


@dataclass
class Matrix:
    """y = x W^T. `full` is [in, out] float32, dequantised; `codes` and `scales` only for FP8."""

    full: np.ndarray
    codes: Optional[np.ndarray] = None   # [in, out] E4M3 values
    scales: Optional[np.ndarray] = None  # [in blocks, out]: scale of each output's block


class MappedMatrix:
    """The same, but made anew from the mapped file each time it is looked at and then forgotten: a full-size
    layer would be 46 GB of float32. Look once, keep what you got as long as you need it."""

    def __init__(self, name, codes, scales):
        self.name, self._codes, self._scales = name, codes, scales

    def _wide(self):
        rows, columns = self._codes.shape
        return np.repeat(np.repeat(self._scales, 128, 0)[:rows], 128, 1)[:, :columns]

    @property
    def full(self):
        return np.ascontiguousarray((E4M3[self._codes] * self._wide()).T)

    @property
    def codes(self):
        return E4M3[np.ascontiguousarray(self._codes.T)]

    @property
    def scales(self):
        return np.ascontiguousarray(np.repeat(self._scales, 128, 0)[:self._codes.shape[0]].T)


@dataclass
class Mlp:
    gate: Matrix
    up: Matrix
    down: Matrix


class LayerWeights:
    """One decoder layer; `dense` is an Mlp or None, otherwise experts, router and shared."""

    def __init__(self, reader, index, dense):
        c, prefix = reader.config, f"model.layers.{index}."
        attn, idx = prefix + "self_attn.", prefix + "self_attn.indexer."
        matrix, vector = reader.matrix, reader.vector
        self.input_norm = vector(prefix + "input_layernorm.weight", c.hidden)
        self.post_norm = vector(prefix + "post_attention_layernorm.weight", c.hidden)
        self.q_a = matrix(attn + "q_a_proj", c.q_lora, c.hidden)
        self.q_norm = vector(attn + "q_a_layernorm.weight", c.q_lora)
        self.q_b = matrix(attn + "q_b_proj", c.heads * (c.nope + c.rope), c.q_lora)
        self.kv_a = matrix(attn + "kv_a_proj_with_mqa", c.kv_lora + c.rope, c.hidden)
        self.kv_norm = vector(attn + "kv_a_layernorm.weight", c.kv_lora)
        kv_b = matrix(attn + "kv_b_proj", c.heads * (c.nope + c.v_dim), c.kv_lora).full.T
        kv_b = kv_b.reshape(c.heads, c.nope + c.v_dim, c.kv_lora)
        self.w_uk = np.ascontiguousarray(kv_b[:, :c.nope])                     # [h, nope, latent]
        self.w_uv = np.ascontiguousarray(kv_b[:, c.nope:].transpose(0, 2, 1))  # [h, latent, v]
        self.o = matrix(attn + "o_proj", c.hidden, c.heads * c.v_dim)
        self.index_q = matrix(idx + "wq_b", c.index_heads * c.index_dim, c.q_lora)
        self.index_k = matrix(idx + "wk", c.index_dim, c.hidden)
        self.index_norm_w = vector(idx + "k_norm.weight", c.index_dim)
        self.index_norm_b = vector(idx + "k_norm.bias", c.index_dim)
        self.index_weights = reader.plain(idx + "weights_proj.weight", c.index_heads, c.hidden)
        self.dense = self.shared = None
        mlp = prefix + "mlp."
        if dense:
            self.dense = reader.mlp(mlp, c.inter)
            return
        self.router = reader.plain(mlp + "gate.weight", c.experts, c.hidden)
        self.router_bias = vector(mlp + "gate.e_score_correction_bias", c.experts)
        self.experts = [reader.mlp(f"{mlp}experts.{e}.", c.moe_inter) for e in range(c.experts)]
        self.shared = reader.mlp(mlp + "shared_experts.", c.shared * c.moe_inter)


class Reader:
    """Finds the tensors of a checkpoint; refuses missing and misshapen ones."""

    def __init__(self, tensors, config, mapped=False):
        self.tensors, self.config, self.mapped = tensors, config, mapped
        self.used = set()

    def _widen(self, name, shape):
        if name not in self.tensors:
            raise ValueError(f"checkpoint lacks {name}")
        dtype, array = self.tensors[name]
        self.used.add(name)
        if array.shape != shape:
            raise ValueError(f"{name}: shape {array.shape}, expected {shape}")
        if dtype == "F32":
            return array.astype(np.float32)
        if dtype == "BF16":
            return bf16_widen(array)
        raise ValueError(f"{name}: type {dtype} is not supported here")

    def vector(self, name, size):
        return self._widen(name, (size,))

    def plain(self, name, out, depth):
        """A matrix that is never quantised, as [in, out]."""
        return np.ascontiguousarray(self._widen(name, (out, depth)).T)

    def read_mtp_parts(self, c):
        prefix = f"model.layers.{c.mtp_index}."
        self.enorm = self.vector(prefix + "enorm.weight", c.hidden)
        self.hnorm = self.vector(prefix + "hnorm.weight", c.hidden)
        self.mtp_norm = self.vector(prefix + "shared_head.norm.weight", c.hidden)
        self.eh = self.plain(prefix + "eh_proj.weight", c.hidden, 2 * c.hidden)

    def mlp(self, prefix, width):
        hidden = self.config.hidden
        return Mlp(self.matrix(prefix + "gate_proj", width, hidden),
                   self.matrix(prefix + "up_proj", width, hidden),
                   self.matrix(prefix + "down_proj", hidden, width))

    def matrix(self, base, out, depth):
        name = base + ".weight"
        if name not in self.tensors:
            raise ValueError(f"checkpoint lacks {name}")
        dtype, array = self.tensors[name]
        if dtype != "F8_E4M3":
            if self.config.quantised:
                raise ValueError(f"{name}: type {dtype}, expected F8_E4M3")
            return Matrix(self.plain(name, out, depth))
        self.used.add(name)
        if array.shape != (out, depth):
            raise ValueError(f"{name}: shape {array.shape}, expected {(out, depth)}")
        scales = self._scales(base + ".weight_scale_inv", (-(-out // 128), -(-depth // 128)))
        if self.mapped:
            return MappedMatrix(name, array, scales)
        codes = E4M3[array]
        wide = np.repeat(np.repeat(scales, 128, 0)[:out], 128, 1)[:, :depth]
        return Matrix(np.ascontiguousarray((codes * wide).T), np.ascontiguousarray(codes.T),
                      np.ascontiguousarray(np.repeat(scales, 128, 0)[:out].T))

    def _scales(self, name, shape):
        if name not in self.tensors:
            raise ValueError(f"checkpoint lacks {name}")
        dtype, array = self.tensors[name]
        self.used.add(name)
        if array.shape != shape:
            raise ValueError(f"{name}: shape {array.shape}, expected {shape}")
        if dtype in ("F8_E8M0", "U8"):
            if np.any(array == 255):
                raise ValueError(f"{name}: 255 is NaN in ue8m0")
            return np.ldexp(F32(1), array.astype(np.int32) - 127).astype(np.float32)
        scales = array.astype(np.float32)
        if self.config.pow2_scales and np.any(np.frexp(scales)[0] != 0.5):
            raise ValueError(f"{name}: scales are not powers of two")
        return scales


class Weights(Reader):
    """Everything of one checkpoint; surplus tensors are refused too."""

    def __init__(self, directory, config):
        super().__init__(read_checkpoint(directory), config)
        c = config
        self.embed = self._widen("model.embed_tokens.weight", (c.vocab, c.hidden))
        self.head = np.ascontiguousarray(self._widen("lm_head.weight", (c.vocab, c.hidden)).T)
        self.norm = self.vector("model.norm.weight", c.hidden)
        self.layers = [LayerWeights(self, i, i < c.dense_layers) for i in range(c.layers)]
        if c.mtp_layers:
            self._read_mtp(c)
        surplus = [n for n in self.tensors
                   if n not in self.used and not n.endswith(".rotary_emb.inv_freq")]
        if surplus:
            raise ValueError(f"checkpoint holds unknown tensors: {surplus[:5]}")
        self.tensors = None

    def _read_mtp(self, c):
        prefix = f"model.layers.{c.mtp_index}."
        self.layers.append(LayerWeights(self, c.mtp_index, False))
        self.read_mtp_parts(c)
        for name, main in ((prefix + "embed_tokens.weight", "model.embed_tokens.weight"),
                           (prefix + "shared_head.head.weight", "lm_head.weight")):
            if name in self.tensors:
                self.used.add(name)
                if not np.array_equal(self.tensors[name][1], self.tensors[main][1]):
                    raise ValueError(f"{name} differs from {main}")


class SomeLayers(Reader):
    """Chosen layers of a checkpoint, mapped: `layers` is {index: LayerWeights}. The MTP layer, index
    config.layers, comes with its own norms and eh_proj."""

    def __init__(self, directory, config, indices):
        super().__init__(MappedCheckpoint(directory), config, True)
        self.layers = {i: LayerWeights(self, i, i < config.dense_layers) for i in indices}
        if config.mtp_index in self.layers:
            self.read_mtp_parts(config)
