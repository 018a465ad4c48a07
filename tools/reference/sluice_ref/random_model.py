"""Two random checkpoints for tests whose dimensions are as unlike each other as section 9 permits.

Everything comes from a counter-based integer generator (splitmix64) and exact float operations, so the bytes
are the same on every machine; make_random.py checks their hash.
"""

import json
import math
import os
import zlib

import numpy as np

from .rounding import bf16_bits, e4m3, e4m3_codes
from .safetensors_io import write_file

F32 = np.float32

COMMON = {
    "architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32",
    "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 1,
    "ep_size": 1, "first_k_dense_replace": 2, "hidden_act": "silu", "index_head_dim": 128,
    "index_topk": 64, "initializer_range": 0.02, "kv_lora_rank": 512,
    "max_position_embeddings": 163840, "moe_layer_freq": 1, "n_shared_experts": 1,
    "norm_topk_prob": True, "num_nextn_predict_layers": 1, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06, "rope_theta": 10000,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0,
                     "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096,
                     "type": "yarn"},
    "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                            "scale_fmt": "ue8m0", "weight_block_size": [128, 128]},
    "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": False,
    "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "use_cache": True, "v_head_dim": 128,
}

# q_b has 192 rows a head: with an odd number of heads its last block is half one. Vocabularies are odd.
VARIANTS = {
    1: {"hidden_size": 384, "q_lora_rank": 640, "intermediate_size": 896,
        "moe_intermediate_size": 256, "num_attention_heads": 9, "num_key_value_heads": 9,
        "index_n_heads": 8, "n_routed_experts": 12, "n_group": 6, "topk_group": 4,
        "num_experts_per_tok": 7, "num_hidden_layers": 5, "vocab_size": 1003},
    2: {"hidden_size": 640, "q_lora_rank": 256, "intermediate_size": 768,
        "moe_intermediate_size": 384, "num_attention_heads": 7, "num_key_value_heads": 7,
        "index_n_heads": 16, "n_routed_experts": 18, "n_group": 9, "topk_group": 5,
        "num_experts_per_tok": 6, "num_hidden_layers": 4, "vocab_size": 1301},
}


def integers(seed, count):
    """splitmix64 of seed and 0..count-1, uint64."""
    with np.errstate(over="ignore"):
        z = (np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
             + np.uint64(seed) * np.uint64(0xD1342543DE82EF95))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


class Maker:
    def __init__(self, which):
        self.which, self.tensors = which, {}
        self.config = dict(COMMON, **VARIANTS[which])
        self.other = which == 2  # the second checkpoint uses the other accepted types

    def uniform(self, name, shape):
        """float32 in [-1, 1), multiples of 2^-23; depends on the variant and the tensor's name."""
        count = math.prod(shape)
        bits = integers(zlib.crc32(f"{self.which}/{name}".encode()), count) >> np.uint64(40)
        return ((bits.astype(np.int64) - (1 << 23)).astype(np.float32) * F32(2 ** -23)).reshape(shape)

    def put_bf16(self, name, shape, amplitude, centre=0.0):
        x = self.uniform(name, shape) * F32(amplitude) + F32(centre)
        self.tensors[name] = ("BF16", bf16_bits(x))

    def put_either(self, name, shape, amplitude, centre):
        """F32 in the first checkpoint, BF16 in the second: both are met in the wild."""
        x = self.uniform(name, shape) * F32(amplitude) + F32(centre)
        self.tensors[name] = ("BF16", bf16_bits(x)) if self.other else ("F32", x)

    def put_fp8(self, base, out, depth, gain=1.0):
        """Blocks differ in size by powers of two, so that a wrong scale index shows."""
        rows, columns = -(-out // 128), -(-depth // 128)
        size = (integers(zlib.crc32(f"{self.which}/{base}/blocks".encode()), rows * columns)
                % np.uint64(3)).astype(np.int32).reshape(rows, columns) - 1
        wide = np.repeat(np.repeat(size, 128, 0)[:out], 128, 1)[:, :depth]
        w = self.uniform(base, (out, depth)) * F32(gain * math.sqrt(3 / depth) / 1.4)
        w = np.ldexp(w, wide).astype(np.float32)
        padded = np.zeros((rows * 128, columns * 128), np.float32)
        padded[:out, :depth] = np.abs(w)
        amax = np.maximum(padded.reshape(rows, 128, columns, 128).max(axis=(1, 3)), F32(1e-4))
        fraction, exponent = np.frexp(amax.astype(np.float64) / 448)
        exponent = np.where(fraction == 0.5, exponent - 1, exponent)
        scale = np.ldexp(F32(1), exponent).astype(np.float32)
        codes = e4m3_codes(e4m3(w / np.repeat(np.repeat(scale, 128, 0)[:out], 128, 1)[:, :depth]))
        self.tensors[base + ".weight"] = ("F8_E4M3", codes)
        stored = ("F32", scale)
        if self.other and zlib.crc32(base.encode()) % 2:
            stored = ("F8_E8M0", (exponent + 127).astype(np.uint8))
        self.tensors[base + ".weight_scale_inv"] = stored

    def put_mlp(self, prefix, width):
        hidden = self.config["hidden_size"]
        self.put_fp8(prefix + "gate_proj", width, hidden)
        self.put_fp8(prefix + "up_proj", width, hidden)
        self.put_fp8(prefix + "down_proj", hidden, width, 2.0)

    def put_indexer(self, prefix, layer):
        c = self.config
        heads = c["index_n_heads"]
        self.put_fp8(prefix + "wq_b", heads * 128, c["q_lora_rank"])
        self.put_fp8(prefix + "wk", 128, c["hidden_size"])
        self.put_either(prefix + "k_norm.weight", (128,), 0.25, 1.0)
        self.put_either(prefix + "k_norm.bias", (128,), 0.3, 0.0)
        w = self.uniform(prefix + "weights_proj.weight", (heads, c["hidden_size"]))
        w = w * F32(math.sqrt(3 / c["hidden_size"]))
        if (self.which, layer) == (1, 1):  # one head: half of all scores are +-0, ties at the cut
            w[np.arange(heads) != 3] = 0
        if (self.which, layer) == (2, 2):  # every score is 0: positions 0..63 are kept
            w[:] = 0
        self.tensors[prefix + "weights_proj.weight"] = ("BF16", bf16_bits(w))

    def put_layer(self, layer):
        c, prefix = self.config, f"model.layers.{layer}."
        attn, hidden, heads = prefix + "self_attn.", c["hidden_size"], c["num_attention_heads"]
        self.put_bf16(prefix + "input_layernorm.weight", (hidden,), 0.25, 1.0)
        self.put_bf16(prefix + "post_attention_layernorm.weight", (hidden,), 0.25, 1.0)
        self.put_fp8(attn + "q_a_proj", c["q_lora_rank"], hidden)
        self.put_bf16(attn + "q_a_layernorm.weight", (c["q_lora_rank"],), 0.25, 1.0)
        self.put_fp8(attn + "q_b_proj", heads * 192, c["q_lora_rank"])
        self.put_fp8(attn + "kv_a_proj_with_mqa", 576, hidden)
        self.put_bf16(attn + "kv_a_layernorm.weight", (512,), 0.25, 1.0)
        self.put_fp8(attn + "kv_b_proj", heads * 256, 512)
        self.put_fp8(attn + "o_proj", hidden, heads * 128, 2.0)
        self.put_indexer(attn + "indexer.", layer)
        if layer < c["first_k_dense_replace"]:
            self.put_mlp(prefix + "mlp.", c["intermediate_size"])
            return
        experts = c["n_routed_experts"]
        self.put_bf16(prefix + "mlp.gate.weight", (experts, hidden), 1.5 * math.sqrt(3 / hidden))
        # Mostly negative after biasing: a gate that masks groups by 0 picks the masked ones.
        self.put_either(prefix + "mlp.gate.e_score_correction_bias", (experts,), 0.3, -0.9)
        for e in range(experts):
            self.put_mlp(f"{prefix}mlp.experts.{e}.", c["moe_intermediate_size"])
        self.put_mlp(prefix + "mlp.shared_experts.", c["moe_intermediate_size"])

    def make(self):
        c = self.config
        vocab, hidden, mtp = c["vocab_size"], c["hidden_size"], c["num_hidden_layers"]
        self.put_bf16("model.embed_tokens.weight", (vocab, hidden), math.sqrt(3))
        self.put_bf16("lm_head.weight", (vocab, hidden), 3 * math.sqrt(3 / hidden))
        self.put_bf16("model.norm.weight", (hidden,), 0.25, 1.0)
        for layer in range(mtp + 1):
            self.put_layer(layer)
        prefix = f"model.layers.{mtp}."
        self.put_bf16(prefix + "enorm.weight", (hidden,), 0.25, 1.0)
        self.put_bf16(prefix + "hnorm.weight", (hidden,), 0.25, 1.0)
        self.put_bf16(prefix + "shared_head.norm.weight", (hidden,), 0.25, 1.0)
        self.put_bf16(prefix + "eh_proj.weight", (hidden, 2 * hidden), math.sqrt(1.5 / hidden))
        if not self.other:  # the copies may be missing
            self.tensors[prefix + "embed_tokens.weight"] = self.tensors["model.embed_tokens.weight"]
            self.tensors[prefix + "shared_head.head.weight"] = self.tensors["lm_head.weight"]
        return self.tensors


def byte_characters():
    """The byte-level alphabet: byte -> printable character (section 7, step 3)."""
    same = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in same]
    table = {b: chr(b) for b in same}
    table.update({b: chr(0x100 + i) for i, b in enumerate(rest)})
    return [table[b] for b in range(256)]


def make_tokenizer(vocab_size, pre_tokenizer):
    """Bytes without merges, the tokens the encoding needs, place holders up to the vocabulary."""
    first = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"]
    last = ["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "｜DSML｜"]
    vocab = {token: i for i, token in enumerate(first + byte_characters())}
    added = [(i, token, True) for i, token in enumerate(first)]
    at = len(vocab)
    fill = [f"<｜place▁holder▁no▁{i}｜>" for i in range(vocab_size - at - len(last))]
    added += [(at + i, token, False) for i, token in enumerate(fill + last)]
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, "content": t, "single_word": False, "lstrip": False,
                          "rstrip": False, "normalized": False, "special": s} for i, t, s in added],
        "normalizer": {"type": "Sequence", "normalizers": []}, "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                    "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": vocab, "merges": []},
    }


def write_checkpoint(directory, tensors, shards):
    """Tensors dealt out in turn, so that a matrix and its scale lie in different files."""
    names = sorted(tensors)
    weight_map, total = {}, 0
    for s in range(shards):
        file = f"model-{s + 1:05d}-of-{shards:06d}.safetensors"
        part = {name: tensors[name] for name in names[s::shards]}
        write_file(os.path.join(directory, file), part)
        weight_map.update({name: file for name in part})
        total += sum(a.nbytes for _, a in part.values())
    write_json(directory, "model.safetensors.index.json",
               {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})


def write_json(directory, name, value):
    with open(os.path.join(directory, name), "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=False, indent=1, sort_keys=True)


def make_checkpoint(which, directory, demo):
    """Writes checkpoint `which`; `demo` is a model folder whose pre-tokenizer and small files are used."""
    os.makedirs(directory, exist_ok=True)
    maker = Maker(which)
    write_checkpoint(directory, maker.make(), which + 1)
    write_json(directory, "config.json", maker.config)
    with open(os.path.join(demo, "tokenizer.json"), encoding="utf-8") as f:
        pre_tokenizer = json.load(f)["pre_tokenizer"]
    write_json(directory, "tokenizer.json",
               make_tokenizer(maker.config["vocab_size"], pre_tokenizer))
    for name in ("generation_config.json", "tokenizer_config.json"):
        with open(os.path.join(demo, name), encoding="utf-8") as f:
            write_json(directory, name, json.load(f))


def prompt_ids(which, seed, count):
    """BOS and random ids, byte tokens and place holders alike."""
    vocab = VARIANTS[which]["vocab_size"]
    rest = integers(1000 + seed, count - 1) % np.uint64(vocab - 8) + np.uint64(3)
    return [0] + [int(i) for i in rest]
