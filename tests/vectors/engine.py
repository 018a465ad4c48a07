"""Runs sluice-run (or a stand-in with its options) and reads what it dumped."""

import json
import os
import subprocess
import sys
import tempfile

from sluice_ref.safetensors_io import read_file, write_file

TIMEOUT_S = 1800


class EngineError(Exception):
    """The program failed or dumped something unreadable: the text says what."""


class Engine:
    def __init__(self, program, scratch, extra=(), cpu=None):
        self.program, self.extra = program, list(extra)
        self.env = {**os.environ, "SLUICE_CPU": cpu} if cpu else None  # None: as it is here
        self.scratch = scratch
        self.runs = 0

    def _run(self, model, options):
        self.runs += 1
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            dump = os.path.join(folder, "dump.safetensors")
            command = [self.program, "--model", model, "--dump", dump, "--json", *options, *self.extra]
            if self.program.endswith(".py"):
                command.insert(0, sys.executable)
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S,
                                  check=False, env=self.env)
            if done.returncode != 0:
                raise EngineError(f"exit {done.returncode}: {done.stderr.strip()[-800:]}")
            if not os.path.exists(dump):
                raise EngineError("no dump was written")
            try:
                tensors = {name: array for name, (_, array) in read_file(dump).items()}
            except (ValueError, KeyError) as e:
                raise EngineError(f"unreadable dump: {e}") from e
        return done.stdout, tensors

    def whole(self, model, ids, numerics, tokens, positions=(), force=(), more=()):
        """(emitted ids, text, dump) of a prompt and `tokens` greedy tokens."""
        options = ["--ids", ",".join(map(str, ids)), "--numerics", numerics, "--temperature", "0",
                   "--max-tokens", str(tokens), "--ignore-eos", *more]
        if len(positions):
            options += ["--dump-positions", ",".join(map(str, positions))]
        if len(force):
            options += ["--force-ids", ",".join(map(str, force))]
        out, dump = self._run(model, options)
        try:
            answer = json.loads(out)
            return answer["ids"], answer["text"], dump
        except (ValueError, KeyError) as e:
            raise EngineError(f"output is not the object of --json: {e}: {out[:200]}") from e

    def layers_timed(self, model, begin, end, x, res):
        """(what --json prints, dump) of layers begin..end-1 fed with x, res (bf16 bits)."""
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            path = os.path.join(folder, "in.safetensors")
            write_file(path, {"layer_x": x, "layer_res": res})
            out, dump = self._run(model, ["--layers", f"{begin}:{end}", "--hidden-in", path])
            return json.loads(out), dump

    def layers(self, model, begin, end, x, res):
        return self.layers_timed(model, begin, end, x, res)[1]
