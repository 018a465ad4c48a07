#!/usr/bin/env python3
"""Plants one error at a time in a copy of the C sources, builds sluice-run there and lets check_vectors.py
(or check_layers.py) judge it. Every error must make a check fail; the unchanged copy must pass. A patch whose text is no longer in
the sources is an error too, so that the list cannot rot.

The copy lives in build/mutants. Takes a few minutes: `make soak` and CI's long job, not `make test`.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
WORK = os.path.join(ROOT, "build", "mutants")
TREE = os.path.join(WORK, "tree")
FOLDERS = ("Makefile", "base/", "model/", "kernels/", "engine/", "cli/", "kvtransfer/", "comm/", "proto/",
           "rpc/", "cluster/", "prefill/", "decode/", "node/", "router/", "tests/unit/build.mk",
           "tests/build.mk")

INDEXER, MOE, ROPE = "kernels/cpu/indexer.c", "kernels/cpu/moe.c", "kernels/cpu/rope.c"
ATTENTION, REF = "kernels/cpu/attention.c", "kernels/cpu/ref.c"

FLIP = """float *flip = (float *)(uintptr_t)scores + (size_t)i * w->slots_max;
        for (uint32_t a = 0, b = seen - 1; a < b; a++, b--) {
            float kept = flip[a];
            flip[a] = flip[b];
            flip[b] = kept;
        }
        if (!krn_variant_current()"""
FLIP_BACK = """uint32_t found = seen < args->topk ? seen : args->topk;
        uint32_t *mirror = args->lists + (size_t)t * args->list_stride;
        for (uint32_t a = 0; a < found; a++)
            mirror[a] = row->slot - (mirror[a] - row->first);
        for (uint32_t a = 0, b = found - 1; a < b; a++, b--) {
            uint32_t kept = mirror[a];
            mirror[a] = mirror[b];
            mirror[b] = kept;
        }
        args->list_counts[t] = seen"""
RAW_TABLE = """#define RAW_ROWS 65536u
static const uint8_t *raw_key[RAW_ROWS];
static uint16_t raw_row[RAW_ROWS][KRN_LATENT_DIM];
uint16_t *krn_mutant_raw(const uint8_t *row);
uint16_t *krn_mutant_raw(const uint8_t *row)
{
    uint32_t at = (uint32_t)((uintptr_t)row / 16) % RAW_ROWS;
    while (raw_key[at] != NULL && raw_key[at] != row)
        at = (at + 1) % RAW_ROWS;
    raw_key[at] = row;
    return raw_row[at];
}

typedef struct latent_work {"""

# name: (what is wrong, [(file, old text, new text)], how it is judged). The old text must occur. Judged by
# check_vectors.py with these options, or by check_layers.py where they are {"layers": True}.
MUTANTS = {
    "mtp-halves": ("MTP: h_final before the embedding", [
        ("engine/mtp.c", "s->mtp_cat + half * bytes", "s->mtp_cat + (1 - half) * bytes")], {"layers": True}),
    "partial-block": ("the scales of a last, partial block are left out", [
        ("kernels/cpu/matrix.c", "(n + KRN_BLOCK - 1) / KRN_BLOCK) * ((k", "n / KRN_BLOCK) * ((k")],
        {"layers": True}),
    "e8m0": ("exponent bytes of scales read with another bias", [
        ("engine/weights.c", "(int)bytes[i] - 127", "(int)bytes[i] - 126")], {"layers": True}),
    "scale-place": ("the scales of a head are taken half a head too early", [
        ("engine/weights.c", "(size_t)head * (rows / KRN_BLOCK)", "(size_t)head * (rows / KRN_BLOCK - 1)")],
        {"layers": True}),
    "hadamard": ("no Hadamard in the indexer", [
        (INDEXER, "variant->hadamard(key);", ";"),
        (INDEXER, "variant->hadamard(row + h * KRN_INDEX_DIM);", ";")], {}),
    "index-rope": ("indexer rope interleaved", [
        (INDEXER, "krn_rope_half_split(", "krn_rope_interleaved(")], {}),
    "main-rope": ("attention rope half-split", [
        (ROPE, "krn_rope_interleaved(w->q", "krn_rope_half_split(w->q"),
        (ATTENTION, "krn_rope_interleaved(rope", "krn_rope_half_split(rope")], {}),
    "ties": ("equal index scores: the higher position wins", [
        (INDEXER, "if (!krn_variant_current()", FLIP),
        (INDEXER, "args->list_counts[t] = seen < args->topk ? seen : args->topk",
         FLIP_BACK + " < args->topk ? seen : args->topk")], {}),
    "gate-mask": ("groups left out are masked by 0", [
        (MOE, "biased[e] = -INFINITY;", "biased[e] = 0;")], {}),
    "scale": ("scales of Q128 not rounded to powers of two", [
        ("kernels/cpu/variant.h", "if (!pow2)", "if (pow2 || !pow2)")], {}),
    "latent": ("attention reads the latent before quantisation", [
        (ATTENTION, "typedef struct latent_work {", RAW_TABLE),
        (ATTENTION, "memcpy(row + KRN_LATENT_SCALES_AT, scales, sizeof scales);",
         "memcpy(krn_mutant_raw(row), latent, sizeof latent);\n"
         "        memcpy(row + KRN_LATENT_SCALES_AT, scales, sizeof scales);"),
        (REF, "static float latent_value(const uint8_t *row, uint32_t d)\n{",
         "uint16_t *krn_mutant_raw(const uint8_t *row);\n"
         "static float latent_value(const uint8_t *row, uint32_t d)\n{\n"
         "    if (row)\n        return krn_bf16_to_f32(krn_mutant_raw(row)[d]);")],
        {"SLUICE_CPU": "ref", "threads": "1"}),
    "biased-weight": ("the biased score weighs the expert", [
        (MOE, "out_weights[count++] = sigmoid[e];", "out_weights[count++] = biased[e];"),
        (MOE, "sum = sum + sigmoid[e];", "sum = sum + biased[e];")], {}),
    "group-score": ("groups scored by their best expert alone", [
        (MOE, "return first + second;", "return first;")], {}),
    "expert-tie": ("equal router scores: the higher index wins", [
        (MOE, "values[j] > values[best]", "values[j] >= values[best]")], {"properties": "1"}),
    "softmax-scale": ("softmax scale without YaRN's second m", [
        (ROPE, "* m * m)", "* m)")], {}),
    "yarn": ("YaRN switched off", [
        (ROPE, "if (config->factor <= 1.0) {", "if (config->factor <= 1000.0) {")], {}),
    "angle": ("rope angle in double", [
        (ROPE, "float angle = (float)w->positions[i] * w->rope->frequency[j];",
         "double angle = (double)w->positions[i] * (double)w->rope->frequency[j];")],
        {"only": "own-needle"}),
    "norm-bias": ("indexer LayerNorm without its bias", [
        ("kernels/cpu/rows.c", "krn_f32_to_bf16(scaled + bias[j])",
         "krn_f32_to_bf16(scaled + 0.0f * bias[j])")], {}),
}
NEEDED = ("hadamard", "index-rope", "main-rope", "ties", "gate-mask", "scale", "latent")


def sources(root):
    """C sources below root, by their names in the tree."""
    out = set()
    for top in FOLDERS:
        path = os.path.join(root, top)
        if os.path.isfile(path):
            out.add(top)
        for folder, _, files in os.walk(path):
            out.update(os.path.relpath(os.path.join(folder, f), root) for f in files)
    return out


def copy_tree(source):
    """The sources as they lie in the working tree; unchanged files keep their times."""
    wanted = sources(source)
    for name in sources(TREE) - wanted:
        os.remove(os.path.join(TREE, name))
    for name in wanted:
        target = os.path.join(TREE, name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not os.path.exists(target) or read(os.path.join(source, name)) != read(target):
            shutil.copyfile(os.path.join(source, name), target)


def read(path):
    with open(path, "rb") as f:
        return f.read()


def build():
    done = subprocess.run(["make", "-C", TREE, "-j2", "BUILD_ROOT=build", "build/bin/sluice-run"],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.returncode == 0, done.stdout[-2000:]


def judge(options):
    """(failed checks or None when the judge itself broke, the failing lines)."""
    env = dict(os.environ)
    folder, program = os.path.join(ROOT, "tests", "vectors"), os.path.join(TREE, "build", "bin", "sluice-run")
    if "layers" in options:
        command = [sys.executable, os.path.join(folder, "check_layers.py"), "--run", program]
    else:
        command = [sys.executable, os.path.join(folder, "check_vectors.py"), "--own", "--run", program,
                   "--only", options.get("only", "rnd1-80")]
    if "SLUICE_CPU" in options:
        env["SLUICE_CPU"] = options["SLUICE_CPU"]
    if "properties" in options:
        command.append("--properties")
    if "threads" in options:
        command += ["--run-option=--threads", "--run-option=" + options["threads"]]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          env=env, check=False)
    count = re.search(r"(\d+) passed, (\d+) failed", done.stdout)
    lines = [line.strip() for line in done.stdout.splitlines() if "FAIL" in line]
    if not count or int(count[1]) + int(count[2]) == 0:
        return None, [done.stdout[-1500:]]
    return int(count[2]), lines


def plant(patches):
    """Changes the copy; returns the original contents, or raises when a text is not there."""
    originals = {}
    for file, old, new in patches:
        path = os.path.join(TREE, file)
        text = read(path).decode()
        originals.setdefault(path, text)
        if old not in text:
            restore(originals)
            raise LookupError(f"{file} no longer holds: {old.splitlines()[0]}")
        with open(path, "w", encoding="utf-8") as f:
            f.write(text.replace(old, new))
    return originals


def restore(originals):
    for path, text in originals.items():
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)


def control():
    """The unchanged copy passes everything that the mutants are judged by."""
    good, text = build()
    if not good:
        print(f"the unchanged copy does not build:\n{text}")
        return False
    seen = []
    for options in [{}] + [m[2] for m in MUTANTS.values() if m[2]]:
        if options in seen:
            continue
        seen.append(options)
        failed, lines = judge(options)
        if failed != 0:
            print(f"the unchanged copy fails ({options}):\n  " + "\n  ".join(lines[:5]))
            return False
    print("unchanged copy: passes")
    return True


def try_mutant(name):
    what, patches, options = MUTANTS[name]
    try:
        originals = plant(patches)
    except LookupError as e:
        return f"stale: {e}"
    try:
        good, text = build()
        if not good:
            return f"does not build:\n{text}"
        failed, lines = judge(options)
    finally:
        restore(originals)
    if failed is None:
        return "judge broke: " + lines[0]
    if failed == 0:
        return f"NOT NOTICED ({what})"
    print(f"{name}: {what}: noticed, {failed} checks fail, first: {lines[0]}", flush=True)
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="mutants to try (default: all)")
    parser.add_argument("--needed", action="store_true", help=f"only {', '.join(NEEDED)}")
    parser.add_argument("--source", default=ROOT, help="tree to copy (default: this one)")
    parser.add_argument("--list", action="store_true", help="list them and stop")
    args = parser.parse_args()
    if args.list:
        print("\n".join(f"{name}: {m[0]}" for name, m in MUTANTS.items()))
        return 0
    unknown = [n for n in args.names if n not in MUTANTS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    begin, passed, failed = time.monotonic(), 0, 0
    copy_tree(os.path.abspath(args.source))
    if not control():
        print("0 passed, 1 failed, 0 skipped")
        return 1
    for name in args.names or (NEEDED if args.needed else MUTANTS):
        problem = try_mutant(name)
        if problem:
            failed += 1
            print(f"FAIL  {name}: {problem}", flush=True)
        else:
            passed += 1
    build()
    print(f"{time.monotonic() - begin:.0f} s")
    print(f"{passed + 1} passed, {failed} failed, 0 skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
