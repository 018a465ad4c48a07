"""Reads and writes safetensors files and sharded checkpoints (specification, section 2).

BF16 and F8_E4M3 stay raw bits (uint16, uint8) here: sluice_ref.rounding widens them.
"""

import json
import os
import struct

import numpy as np

TYPES = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "BF16": np.dtype("<u2"),
    "F8_E4M3": np.dtype("u1"), "F8_E8M0": np.dtype("u1"), "U8": np.dtype("u1"),
    "I32": np.dtype("<i4"), "I64": np.dtype("<i8"),
}
NAMES = {np.dtype("<f8"): "F64", np.dtype("<f4"): "F32", np.dtype("<u2"): "BF16",
         np.dtype("u1"): "U8", np.dtype("<i4"): "I32", np.dtype("<i8"): "I64"}
MAX_HEADER = 64 << 20


def read_header(f, path):
    """Returns ({name: (dtype name, shape, begin, end)}, offset of the data)."""
    size = os.fstat(f.fileno()).st_size
    (length,) = struct.unpack("<Q", f.read(8))
    if length > min(MAX_HEADER, size - 8):
        raise ValueError(f"{path}: header of {length} bytes does not fit")

    def no_twice(pairs):
        out = dict(pairs)
        if len(out) != len(pairs):
            raise ValueError(f"{path}: a name occurs twice in the header")
        return out

    header = json.loads(f.read(length), object_pairs_hook=no_twice)
    header.pop("__metadata__", None)
    out = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        count = int(np.prod(entry["shape"], dtype=np.int64))
        if not 0 <= begin <= end <= size - 8 - length:
            raise ValueError(f"{path}: {name}: offsets out of range")
        if end - begin != count * TYPES[entry["dtype"]].itemsize:
            raise ValueError(f"{path}: {name}: size does not fit the shape")
        out[name] = (entry["dtype"], tuple(entry["shape"]), begin, end)
    return out, 8 + length


def read_file(path, names=None):
    """{tensor name: (dtype name, array)} of one file, or of the named tensors in it."""
    out = {}
    with open(path, "rb") as f:
        header, base = read_header(f, path)
        for name, (dtype, shape, begin, end) in header.items():
            if names is not None and name not in names:
                continue
            f.seek(base + begin)
            out[name] = (dtype, np.frombuffer(f.read(end - begin), TYPES[dtype]).reshape(shape))
    return out


def write_file(path, tensors):
    """tensors: {name: array} (uint16 means BF16) or {name: (dtype name, array)}.

    Wide types first, then by name, as the usual writer does: every tensor is aligned to its type.
    """
    def place(name):
        value = tensors[name]
        dtype = value[0] if isinstance(value, tuple) else NAMES[value.dtype]
        return -TYPES[dtype].itemsize, name

    header, blobs, at = {}, [], 0
    for name in sorted(tensors, key=place):
        value = tensors[name]
        dtype, array = value if isinstance(value, tuple) else (NAMES[value.dtype], value)
        blob = np.ascontiguousarray(array, TYPES[dtype]).tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape),
                        "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for blob in blobs:
            f.write(blob)


class MappedCheckpoint(dict):
    """{tensor name: (dtype name, array)} of a checkpoint whose arrays are mapped files: nothing is read before
    it is looked at. Tensors that the index names but no file holds are left out."""

    def __init__(self, directory):
        super().__init__()
        with open(os.path.join(directory, "model.safetensors.index.json"), encoding="utf-8") as f:
            where = json.load(f)["weight_map"]
        for shard in sorted(set(where.values())):
            path = os.path.join(directory, shard)
            if not os.path.exists(path):
                continue
            with open(path, "rb") as f:
                header, base = read_header(f, path)
            bytes_of = np.memmap(path, np.uint8, "r")
            for name, (dtype, shape, begin, end) in header.items():
                data = bytes_of[base + begin:base + end]
                self[name] = (dtype, data.view(TYPES[dtype]).reshape(shape))


def read_checkpoint(directory):
    with open(os.path.join(directory, "model.safetensors.index.json"), encoding="utf-8") as f:
        where = json.load(f)["weight_map"]
    out = {}
    for shard in sorted(set(where.values())):
        found = read_file(os.path.join(directory, shard))
        surplus = [name for name in found if where.get(name) != shard]
        if surplus:
            raise ValueError(f"{shard}: not in the index: {surplus[:5]}")
        out.update(found)
    missing = [name for name in where if name not in out]
    if missing:
        raise ValueError(f"checkpoint lacks {missing[:5]}")
    return out
