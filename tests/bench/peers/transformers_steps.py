"""What a token costs transformers at a position, by the CPU clock: as llama_steps.c, started by peers.py.

    transformers_steps.py MODEL_DIR DTYPE THREADS POSITION...   one line a position: POSITION PREFILL_MS DECODE_MS

The model has the directory's shape and random weights (the time does not depend on them).
"""
import sys
import time

import torch
from transformers import AutoConfig, AutoModelForCausalLM

CHUNK, DECODE = 512, 8


def main():
    folder, dtype, threads = sys.argv[1:4]
    torch.set_num_threads(int(threads))
    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
    state = {"cache": None, "length": 0}

    def step(count):
        tokens = torch.randint(0, config.vocab_size, (1, count))
        before = time.process_time()
        out = model(tokens, past_key_values=state["cache"], use_cache=True, logits_to_keep=1)
        seconds = time.process_time() - before
        state["cache"] = out.past_key_values
        state["length"] += count
        return seconds

    def back_to(position):
        state["cache"].crop(position - state["length"])
        state["length"] = position

    with torch.no_grad():
        for position in map(int, sys.argv[4:]):
            while state["length"] < position:
                step(CHUNK)
            prefill = step(CHUNK) / CHUNK
            back_to(position)
            decode = sorted(step(1) for _ in range(DECODE))[DECODE // 2]
            back_to(position)
            print(f"{position} {prefill * 1e3:.4f} {decode * 1e3:.4f}", flush=True)


main()
