"""Streaming of the cache is real: bytes arrive while the prompt is still being computed; the right number of them; over shared memory and TCP."""

import os
import signal
import threading

from lib import Cluster, Skip, has_netns, needle_prompt, wait_for

PAGE_LAYER_BYTES = 50432
LAYERS = 7  # of the demo model, MTP layer included
H_FINAL_BYTES = 512


def held_transfer(cluster):
    """The prefill node stops inside its last layer group; by then the decode node must hold the earlier groups' bytes."""
    prompt = needle_prompt(1900)
    tokens = cluster.request("POST", "/tokenize", {"prompt": prompt})
    assert tokens[0] == 200
    outcome = {}
    thread = threading.Thread(target=lambda: outcome.update(answer=cluster.chat(prompt, temperature=0, stream=True)))
    thread.start()
    wait_for(lambda: "fault prefill.group: hold" in cluster.log("prefill-0"), "the hold")
    early = wait_for(lambda: cluster.metric("decode-0", "sluice_kv_received_bytes_total"), "bytes before the last group")
    assert cluster.metric("prefill-0", "sluice_prompt_tokens_total") == 0, "the prompt is not computed yet"
    pid = prefill_pid(cluster)
    os.kill(pid, signal.SIGUSR2)
    thread.join()
    answer = outcome["answer"]
    assert "48213" in answer.content, (answer.content, answer.error)
    prompt_tokens = cluster.metric("prefill-0", "sluice_prompt_tokens_total")
    blocks = -(-int(prompt_tokens) // 64)
    wait_for(lambda: cluster.metric("decode-0", "sluice_kv_received_pieces_total") == blocks * 4, f"{blocks} x 4 pieces to be counted")
    total = cluster.metric("decode-0", "sluice_kv_received_bytes_total")
    pieces = cluster.metric("decode-0", "sluice_kv_received_pieces_total")
    assert total == blocks * (LAYERS * PAGE_LAYER_BYTES + H_FINAL_BYTES), (total, blocks)
    print(f"{early:.0f} of {total:.0f} bytes arrived before the last group was computed; {pieces:.0f} pieces; "
          f"ratio to tokens x layers x 788: {total / (prompt_tokens * LAYERS * 788):.3f}")
    cluster.wait_at_rest()


def prefill_pid(cluster):
    """The node's own pid (under --netns the recorded one is `ip netns exec`, which became the node by exec)."""
    return cluster.node("prefill-0")["pid"]


def arguments(chunks):
    """Groups of 2 layers: 4 a chunk. Held at the last group of the prompt's last chunk, whose rows are many pages."""
    return ["--node-args", "--layer-group 2 --chunk-tokens 4096", "--env", f"prefill-0:SLUICE_FAULTS=prefill.group=hold@{4 * chunks}"]


def test_shared_memory():
    with Cluster("transfer-shm", *arguments(1)) as cluster:
        held_transfer(cluster)


def test_tcp_between_namespaces():
    if os.geteuid() != 0 or not has_netns():
        raise Skip("needs root and network namespaces")
    with Cluster("transfer-tcp", "--netns", "--env", "*:UCX_TLS=tcp,self", *arguments(1)) as cluster:
        held_transfer(cluster)


def test_sockets_between_namespaces():
    if os.geteuid() != 0 or not has_netns():
        raise Skip("needs root and network namespaces")
    with Cluster("transfer-sockets", "--netns", "--node-args", "--layer-group 2 --chunk-tokens 4096 --kv-transport tcp",
                 "--env", "prefill-0:SLUICE_FAULTS=prefill.group=hold@4") as cluster:
        held_transfer(cluster)


def test_transports_that_differ():
    """Nodes that cannot reach each other say so at once, and what to do."""
    with Cluster("transfer-differ", "--prefill-args=--kv-transport tcp", "--decode-args=--kv-transport ucx") as cluster:
        answer = cluster.chat(needle_prompt(300), temperature=0, stream=True)
        assert "give both the same kv transport (nodes: --kv-transport)" in answer.error["message"], (answer.content, answer.error)
        assert cluster.metric("decode-0", "sluice_kv_received_pieces_total") == 0
        cluster.wait_at_rest()


def mismatches(name, fault, *sums):
    """kvt.fetch is a sum that differs: where none is looked at, it is never met."""
    with Cluster(name, "--env", f"decode-0:SLUICE_FAULTS=kvt.fetch={fault}", *sums) as cluster:
        answer = cluster.chat(needle_prompt(300), temperature=0, stream=True)
        assert answer.done and "48213" in answer.content, (answer.content, answer.error)
        received = cluster.metric("decode-0", "sluice_kv_received_pieces_total")
        assert received > 0, "the pieces came from the prefill node"
        cluster.wait_at_rest()
        return cluster.metric("decode-0", "sluice_kv_sum_mismatches_total")


def test_sums():
    assert mismatches("transfer-sums-all", "fail@1") == 1  # fetched once more
    assert mismatches("transfer-sums-off", "fail", "--node-args=--kv-sums off") == 0
