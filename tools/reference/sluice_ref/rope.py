"""YaRN frequencies and the two rotations (section 3.4)."""

import math

import numpy as np

F32 = np.float32


def frequencies(config):
    """float32 [rope/2]."""
    dim, yarn = config.rope, config.yarn
    j = np.arange(dim // 2)
    power = np.array([math.pow(config.theta, float(F32(2 * i) / F32(dim))) for i in j])
    base = (F32(1) / power.astype(np.float32)).astype(np.float32)
    factor = F32(yarn["factor"])
    if factor <= 1:
        return base

    def turn(beta):
        length = yarn["original_max_position_embeddings"]
        return dim * math.log(length / (beta * 2 * math.pi)) / (2 * math.log(config.theta))

    low = max(math.floor(turn(yarn["beta_fast"])), 0)
    high = min(math.ceil(turn(yarn["beta_slow"])), dim - 1)
    span = F32(high - low) if high != low else F32(0.001)
    ramp = np.clip((j.astype(np.float32) - F32(low)) / span, F32(0), F32(1)).astype(np.float32)
    keep = F32(1) - ramp
    return ((base / factor) * (F32(1) - keep) + base * keep).astype(np.float32)


def softmax_scale(config):
    m = 0.1 * config.yarn["mscale_all_dim"] * math.log(config.yarn["factor"]) + 1
    if config.yarn["factor"] <= 1:
        m = 1.0
    return F32((config.nope + config.rope) ** -0.5 * m * m)


def tables(freq, positions):
    """cos, sin [T, rope/2]: the angle is rounded to float32, its cosine computed in double."""
    angle = (np.asarray(positions).astype(np.float32)[:, None] * freq).astype(np.float64)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def interleaved(x, cos, sin):
    """Pairs (2j, 2j+1); x [..., rope], tables broadcast against [..., rope/2]. Not rounded."""
    a, b = x[..., 0::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., 0::2] = a * cos - b * sin
    out[..., 1::2] = a * sin + b * cos
    return out


def half_split(x, cos, sin):
    """Pairs (j, j + rope/2). Not rounded."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
