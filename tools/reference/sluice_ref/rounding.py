"""bfloat16 and FP8 E4M3FN rounding on float32 arrays, Q128, Hadamard (sections 3.3 and 4.3)."""

import numpy as np

F32 = np.float32


def bf16_bits(x):
    """float32 -> bfloat16 bits (uint16), nearest even. Finite input only."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
            >> np.uint32(16)).astype(np.uint16)


def bf16_widen(bits):
    return (np.asarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


def bf(x):
    return bf16_widen(bf16_bits(x))


def _code_values():
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    magnitude = np.where(exponent == 0, mantissa * 2.0 ** -9,
                         (8 + mantissa) * 2.0 ** (exponent - 10.0))
    value = np.where(codes & 128, -magnitude, magnitude).astype(np.float32)
    value[[0x7F, 0xFF]] = np.nan
    return value


E4M3 = _code_values()


def e4m3(x):
    """float32 -> the nearest E4M3 value as float32 (ties to even), saturating at 448."""
    x = np.clip(x, F32(-448), F32(448))
    exponent = ((np.ascontiguousarray(x, np.float32).view(np.uint32) >> np.uint32(23))
                & np.uint32(255)).astype(np.int32) - 127
    step = np.ldexp(F32(1), np.maximum(exponent, -6) - 3).astype(np.float32)
    return (np.rint(x / step) * step).astype(np.float32)


def e4m3_codes(values):
    """Codes (uint8) of values that are exactly representable; the sign of zero is kept."""
    codes = np.searchsorted(E4M3[:127], np.abs(values)).astype(np.uint8)
    return codes | (np.signbit(values).astype(np.uint8) << np.uint8(7))


def q128(x, pow2=True, group=128):
    """x [..., K] -> (e4m3 values [..., K] as float32, scales [..., K/group])."""
    if not np.all(np.isfinite(x)):
        raise ValueError("q128: input is not finite")
    parts = x.reshape(x.shape[:-1] + (-1, group))
    amax = np.maximum(np.max(np.abs(parts), axis=-1), F32(1e-4))
    scale = (amax * F32(F32(1) / F32(448))).astype(np.float32)
    if pow2:
        fraction, exponent = np.frexp(scale)  # scale = fraction * 2^exponent, fraction in [.5, 1)
        exponent = np.where(fraction == F32(0.5), exponent - 1, exponent)
        scale = np.ldexp(F32(1), exponent).astype(np.float32)
    values = e4m3((parts / scale[..., None]).astype(np.float32))
    return values.reshape(x.shape), scale


def hadamard(x):
    """Natural-order Hadamard transform of the last axis in float32, not scaled, stride 1 first."""
    size = x.shape[-1]
    stride = 1
    y = x.astype(np.float32)
    while stride < size:
        pairs = y.reshape(x.shape[:-1] + (size // (2 * stride), 2, stride))
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        y = np.stack([a + b, a - b], axis=-2).reshape(x.shape)
        stride *= 2
    return y
