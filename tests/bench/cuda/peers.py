"""What PyTorch offers for the same shapes, in the same run as kernels_bench: dense ceilings, fp8
products with 1x128 x 128x128 scales (cuBLASLt), top-k. Graphs of 20 calls, medians over CUDA events.
peers.py [NAME PART] runs the matching rows."""
import sys

import torch


def time_us(function, repeat=20):
    """Microseconds a call, launched from a graph."""
    for i in range(3):
        function(i)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(repeat):
            function(i)
    graph.replay()
    times = []
    for _ in range(5):
        start, end = torch.cuda.Event(True), torch.cuda.Event(True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / repeat)
    return sorted(times)[2]


def row(name, us, flops=0, size=0):
    print(f"{name:<44} {us:9.2f} us {size / us * 1e-3:8.0f} GB/s {flops / us * 1e-6:8.1f} TFLOP/s", flush=True)


def bf16_square(n=8192):
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    row("peer bf16 matmul 8192^3", time_us(lambda i: a @ b), 2 * n**3)


def scaled(m, n, k, mode):
    sets = max(1, min(16, int(3e8 // (n * k))))
    a = (torch.randn(m, k, device="cuda") * 8).to(torch.float8_e4m3fn)
    b = [(torch.randn(n, k, device="cuda") * 8).to(torch.float8_e4m3fn) for _ in range(sets)]
    if mode == "block":
        sa = torch.rand(k // 128, m, device="cuda").t()
        padded = (k // 128 + 3) // 4 * 4
        sb = torch.rand((n + 127) // 128, padded, device="cuda")[:, : k // 128].t()
    else:
        sa = sb = torch.ones((), device="cuda")
    call = lambda i: torch._scaled_mm(a, b[i % sets].t(), sa, sb, out_dtype=torch.bfloat16)
    row(f"peer scaled_mm {mode} M{m} N{n} K{k}", time_us(call), 2 * m * n * k, n * k + m * k + 2 * m * n)


def topk(rows, length):
    x = torch.randn(rows, length, device="cuda")
    row(f"peer topk 2048 rows{rows} L{length}", time_us(lambda i: torch.topk(x, 2048, sorted=False)), 0, rows * length * 4)


def attempt(function, *arguments):
    if len(sys.argv) > 1 and sys.argv[1] not in f"{function.__name__} {arguments}":
        return
    try:
        function(*arguments)
    except Exception as error:  # a shape or mode this version refuses
        print(f"peer {function.__name__} {arguments}: refused: {str(error).splitlines()[0][:150]}", flush=True)


attempt(bf16_square)
attempt(scaled, 8192, 8192, 8192, "tensor")
for shape in ((16, 2240, 7168), (128, 24576, 1536), (128, 7168, 16384), (8192, 8192, 8192)):
    attempt(scaled, *shape, "block")
for m in (1024, 4096):
    for shape in ((2240, 7168), (24576, 1536), (7168, 16384), (4096, 7168), (7168, 2048)):
        attempt(scaled, m, *shape, "block")
for shape in ((1, 32768), (1, 131072), (128, 32768)):
    attempt(topk, *shape)
