"""Vector files, model folders and the checkpoints that are changed on purpose."""

import json
import os
import shutil

import numpy as np

from make_random import ensure
from sluice_ref.rounding import bf16_widen
from sluice_ref.safetensors_io import read_file, write_file


class Vector:
    def __init__(self, folder, name, model, origin):
        with open(os.path.join(folder, name + ".json"), encoding="utf-8") as f:
            self.json = json.load(f)
        self.name, self.model, self.origin = name, model, origin
        self.ids = self.json["token_ids"]
        self.count = len(self.ids)
        self.tensors = {}
        for end in (".safetensors", ".layers.safetensors"):
            path = os.path.join(folder, name + end)
            if os.path.exists(path):
                self.tensors.update({k: v[1] for k, v in read_file(path).items()})

    def fields(self, tag):
        if tag == "fp8_f64":
            return self.json.get("fp8_f64_sums")
        return self.json["modes"].get(tag)

    def positions(self, tag):
        return sorted({s["position"] for s in self.fields(tag)["index_sets"]})


def find_shared(root, asked):
    """../shared of the clone; of a worktree one level deeper too. None: not there."""
    places = [asked] if asked else [os.path.join(root, "..", "shared"),
                                    os.path.join(root, "..", "..", "shared")]
    for place in places:
        if os.path.isdir(os.path.join(place, "vectors", "fp8-absorbed")):
            return os.path.abspath(place)
    return None


def names(folder):
    return sorted(n[:-5] for n in os.listdir(folder) if n.endswith(".json"))


class Models:
    """Model folders by name, made when first asked for."""

    def __init__(self, root):
        self.root, self.build = root, os.path.join(root, "build", "vectors")
        self.config_cache = {}
        os.makedirs(self.build, exist_ok=True)

    def path(self, name):
        if name == "demo":
            return os.path.join(self.root, "models", "demo")
        path = os.path.join(self.build, name)
        if name.startswith("random-"):
            ensure(int(name[-1]), path)
        return path

    def config(self, name):
        if name not in self.config_cache:
            with open(os.path.join(self.path(name), "config.json"), encoding="utf-8") as f:
                self.config_cache[name] = json.load(f)
        return self.config_cache[name]

    def embedding(self, name, ids):
        """bf16 bits of the rows: what enters layer 0."""
        path = self.path(name)
        with open(os.path.join(path, "model.safetensors.index.json"), encoding="utf-8") as f:
            file = json.load(f)["weight_map"]["model.embed_tokens.weight"]
        table = read_file(os.path.join(path, file), {"model.embed_tokens.weight"})
        return table["model.embed_tokens.weight"][1][np.asarray(ids)]

    def changed(self, name, label, change):
        """A copy of model `name` whose tensors went through change(tensor name, (type, array))."""
        source, path = self.path(name), os.path.join(self.build, f"{name}-{label}")
        shutil.rmtree(path, ignore_errors=True)
        os.makedirs(path)
        for file in os.listdir(source):
            if not file.endswith(".safetensors"):
                shutil.copyfile(os.path.join(source, file), os.path.join(path, file))
                continue
            tensors = read_file(os.path.join(source, file))
            write_file(os.path.join(path, file), {k: change(k, v) for k, v in tensors.items()})
        return path


def lower_bias(name, value):
    """Subtracts 2 from every router bias. Kept in F32, so that nothing is rounded away."""
    if not name.endswith("e_score_correction_bias"):
        return value
    dtype, array = value
    wide = bf16_widen(array) if dtype == "BF16" else array
    return "F32", (wide - np.float32(2)).astype(np.float32)


def zero_index_weights(name, value):
    if not name.endswith("indexer.weights_proj.weight"):
        return value
    return value[0], np.zeros_like(value[1])


def equal_router(name, value):
    """Every expert scores the same."""
    if name.endswith((".mlp.gate.weight", "e_score_correction_bias")):
        return value[0], np.zeros_like(value[1])
    return value
