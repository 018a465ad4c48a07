"""What a published checkpoint looks like: configurations, the tensors of one, their files (spec 1 and 2).

Knows names, shapes and types, holds no data. `full` is V3.2 itself, `small` the same with other dimensions,
no two of which are equal, so that a mix-up shows.
"""

import math
from dataclasses import dataclass

FP8, BF16, F32 = "F8_E4M3", "BF16", "F32"
SIZES = {FP8: 1, BF16: 2, F32: 4, "F8_E8M0": 1, "U8": 1}

FULL = {
    "architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32", "attention_bias": False,
    "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1, "first_k_dense_replace": 3,
    "hidden_act": "silu", "hidden_size": 7168, "index_head_dim": 128, "index_n_heads": 64,
    "index_topk": 2048, "initializer_range": 0.02, "intermediate_size": 18432, "kv_lora_rank": 512,
    "max_position_embeddings": 163840, "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8,
    "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 128,
    "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                            "scale_fmt": "ue8m0", "weight_block_size": [128, 128]},
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
                     "original_max_position_embeddings": 4096, "type": "yarn"},
    "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
    "tie_word_embeddings": False, "topk_group": 4, "topk_method": "noaux_tc", "torch_dtype": "bfloat16",
    "use_cache": True, "v_head_dim": 128, "vocab_size": 129280,
}
SMALL = dict(FULL, hidden_size=768, q_lora_rank=384, intermediate_size=640, moe_intermediate_size=256,
             num_attention_heads=7, num_key_value_heads=7, index_n_heads=16, index_topk=64,
             n_routed_experts=24, n_group=6, topk_group=3, num_experts_per_tok=5, num_hidden_layers=2,
             first_k_dense_replace=1, vocab_size=1151)
SHAPES = {"full": (FULL, 163), "small": (SMALL, 5)}  # configuration, files


@dataclass(frozen=True)
class Entry:
    name: str
    kind: str    # what its values are: fp8, scale, matrix, norm, bias, embedding, vector
    dtype: str
    shape: tuple
    layer: int   # -1: embedding, final norm, head

    @property
    def bytes(self):
        return math.prod(self.shape) * SIZES[self.dtype]


def _blocks(n):
    return -(-n // 128)


class _Lister:
    def __init__(self, config, scale_dtype):
        self.c, self.scale_dtype, self.entries = config, scale_dtype, []
        self.layer, self.prefix = -1, ""

    def put(self, name, kind, dtype, *shape):
        self.entries.append(Entry(self.prefix + name, kind, dtype, shape, self.layer))

    def norm(self, name, size):
        self.put(name + ".weight", "norm", BF16, size)

    def fp8(self, name, out, depth):
        self.put(name + ".weight", "fp8", FP8, out, depth)
        self.put(name + ".weight_scale_inv", "scale", self.scale_dtype, _blocks(out), _blocks(depth))

    def mlp(self, name, width):
        hidden = self.c["hidden_size"]
        self.fp8(name + ".gate_proj", width, hidden)
        self.fp8(name + ".up_proj", width, hidden)
        self.fp8(name + ".down_proj", hidden, width)

    def attention(self):
        c, hidden, heads, lora = (self.c, self.c["hidden_size"], self.c["num_attention_heads"],
                                  self.c["q_lora_rank"])
        nope, rope, value = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
        latent, dim = c["kv_lora_rank"], c["index_head_dim"]
        self.fp8("self_attn.q_a_proj", lora, hidden)
        self.norm("self_attn.q_a_layernorm", lora)
        self.fp8("self_attn.q_b_proj", heads * (nope + rope), lora)
        self.fp8("self_attn.kv_a_proj_with_mqa", latent + rope, hidden)
        self.norm("self_attn.kv_a_layernorm", latent)
        self.fp8("self_attn.kv_b_proj", heads * (nope + value), latent)
        self.fp8("self_attn.o_proj", hidden, heads * value)
        self.fp8("self_attn.indexer.wq_b", c["index_n_heads"] * dim, lora)
        self.fp8("self_attn.indexer.wk", dim, hidden)
        self.put("self_attn.indexer.k_norm.weight", "norm", F32, dim)
        self.put("self_attn.indexer.k_norm.bias", "vector", F32, dim)
        self.put("self_attn.indexer.weights_proj.weight", "matrix", BF16, c["index_n_heads"], hidden)

    def one_layer(self, layer):
        c = self.c
        self.layer, self.prefix = layer, f"model.layers.{layer}."
        self.norm("input_layernorm", c["hidden_size"])
        self.norm("post_attention_layernorm", c["hidden_size"])
        self.attention()
        if layer < c["first_k_dense_replace"]:
            self.mlp("mlp", c["intermediate_size"])
            return
        self.put("mlp.gate.weight", "matrix", BF16, c["n_routed_experts"], c["hidden_size"])
        self.put("mlp.gate.e_score_correction_bias", "bias", F32, c["n_routed_experts"])
        for e in range(c["n_routed_experts"]):
            self.mlp(f"mlp.experts.{e}", c["moe_intermediate_size"])
        self.mlp("mlp.shared_experts", c["n_shared_experts"] * c["moe_intermediate_size"])

    def all(self):
        c = self.c
        vocab, hidden = c["vocab_size"], c["hidden_size"]
        self.put("model.embed_tokens.weight", "embedding", BF16, vocab, hidden)
        for layer in range(c["num_hidden_layers"]):
            self.one_layer(layer)
        self.layer, self.prefix = -1, ""
        self.norm("model.norm", hidden)
        self.put("lm_head.weight", "matrix", BF16, vocab, hidden)
        self.one_layer(c["num_hidden_layers"])  # the MTP layer
        for name in ("enorm", "hnorm", "shared_head.norm"):
            self.norm(name, hidden)
        self.put("eh_proj.weight", "matrix", BF16, hidden, 2 * hidden)
        self.put("embed_tokens.weight", "embedding", BF16, vocab, hidden)  # copies of the main ones
        self.put("shared_head.head.weight", "matrix", BF16, vocab, hidden)
        return self.entries


def tensors(config, scale_dtype=F32):
    """Every tensor in the order of the files."""
    return _Lister(config, scale_dtype).all()


def assign_files(entries, count):
    """File name of each entry: files of about equal size, cut between tensors, as published."""
    total, at, names = sum(e.bytes for e in entries), 0, []
    for e in entries:
        names.append(f"model-{at * count // total + 1:05d}-of-{count:06d}.safetensors")
        at += e.bytes
    if len(set(names)) != count:
        raise ValueError(f"{len(entries)} tensors do not make {count} files of equal size")
    return names
