"""Reads config.json and refuses what the specification does not cover."""

import json
import os
from dataclasses import dataclass

REQUIRED = {
    "model_type": "deepseek_v32",
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "moe_layer_freq": 1,
}


@dataclass(frozen=True)
class Config:
    vocab: int
    hidden: int
    layers: int
    mtp_layers: int
    dense_layers: int
    inter: int
    moe_inter: int
    experts: int
    experts_per_token: int
    shared: int
    groups: int
    groups_kept: int
    routed_scale: float
    heads: int
    q_lora: int
    kv_lora: int
    nope: int
    rope: int
    v_dim: int
    index_heads: int
    index_dim: int
    index_topk: int
    theta: float
    eps: float
    yarn: dict
    pow2_scales: bool
    quantised: bool
    bos: int
    eos: int

    @property
    def mtp_index(self):
        return self.layers


def load_config(directory):
    with open(os.path.join(directory, "config.json"), encoding="utf-8") as f:
        raw = json.load(f)
    for key, value in REQUIRED.items():
        if raw.get(key) != value:
            raise ValueError(f"config.json: {key} is {raw.get(key)!r}, only {value!r} is supported")
    quant = raw.get("quantization_config")
    if quant is not None and (quant["fmt"], quant["weight_block_size"]) != ("e4m3", [128, 128]):
        raise ValueError("config.json: quantization_config is not e4m3 in blocks of 128x128")
    yarn = raw["rope_scaling"]
    if yarn["type"] != "yarn" or yarn["mscale"] != yarn["mscale_all_dim"]:
        raise ValueError("config.json: rope_scaling is not YaRN with equal mscales")
    return Config(
        vocab=raw["vocab_size"], hidden=raw["hidden_size"], layers=raw["num_hidden_layers"],
        mtp_layers=raw["num_nextn_predict_layers"], dense_layers=raw["first_k_dense_replace"],
        inter=raw["intermediate_size"], moe_inter=raw["moe_intermediate_size"],
        experts=raw["n_routed_experts"], experts_per_token=raw["num_experts_per_tok"],
        shared=raw["n_shared_experts"], groups=raw["n_group"], groups_kept=raw["topk_group"],
        routed_scale=raw["routed_scaling_factor"], heads=raw["num_attention_heads"],
        q_lora=raw["q_lora_rank"], kv_lora=raw["kv_lora_rank"], nope=raw["qk_nope_head_dim"],
        rope=raw["qk_rope_head_dim"], v_dim=raw["v_head_dim"], index_heads=raw["index_n_heads"],
        index_dim=raw["index_head_dim"], index_topk=raw["index_topk"], theta=raw["rope_theta"],
        eps=raw["rms_norm_eps"], yarn=yarn, quantised=quant is not None,
        pow2_scales=quant is None or quant.get("scale_fmt") == "ue8m0",
        bos=raw["bos_token_id"], eos=raw["eos_token_id"])
