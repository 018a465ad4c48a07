"""Who is a member, who is used, and how nodes come and go."""

import json
import os
import signal
import subprocess
import sys
import threading

from lib import SCRIPT, Cluster, needle_prompt, wait_for


def test_records_are_readable():
    with Cluster("members") as cluster:
        members = cluster.members()
        assert set(members) >= {"prefill-0", "decode-0"}, members
        record = members["decode-0"]
        assert record["role"] == "decode" and record["state"] == "ready" and record["control"] == cluster.node("decode-0")["control"]
        assert record["stamp"]["numerics_id"] in ("cpu-f32-v1", "cpu-amx-v1", "cuda-sm90-v1") and len(record["stamp"]["model_hash"]) == 64
        assert record["stamp"] == members["prefill-0"]["stamp"]


def test_killed_node_is_unused_at_once_and_gone_after_its_lease():
    with Cluster("killed", "--prefill", 2, "--decode", 2, "--lease", "3s") as cluster:
        cluster.kill("prefill-0")
        cluster.kill("decode-0")
        for _ in range(6):  # the lease still stands: the streams tell
            answer = cluster.chat("Who are you?", temperature=0)
            assert answer.status == 200 and "Sluice demo model" in answer.content, answer.body
            assert answer.headers["x-sluice-prefill-node"] == "prefill-1" and answer.headers["x-sluice-decode-node"] == "decode-1"
        wait_for(lambda: not {"prefill-0", "decode-0"} & set(cluster.members()), "the leases' end")
        cluster.wait_at_rest()


def test_a_taken_name_is_told_before_weights_are_read():
    """Nobody waits for a model to load to hear that; the node that has the name serves on. Each node has a second tier of its own."""
    def elsewhere(name):
        argv = list(cluster.node(name)["argv"])
        for option in ("--control", "--metrics"):
            argv[argv.index(option) + 1] = "127.0.0.1:0"
        return argv
    with Cluster("taken", "--decode", 2, "--kv-disk", "8MiB", "--lease", "2s") as cluster:
        second = subprocess.run(elsewhere("decode-0"), capture_output=True, text=True)
        assert second.returncode == 1 and 'node name "decode-0" is taken' in second.stderr, second.stderr
        assert cluster.node("decode-0")["control"] in second.stderr and "loaded" not in second.stderr, second.stderr
        assert all(cluster.alive(name) for name in ("decode-0", "decode-1"))
        assert cluster.chat("Who are you?", temperature=0).status == 200
        for name in ("prefill-0", "decode-0", "decode-1"):
            assert f"{name}.kv: 0 of " in cluster.log(name).replace(":8MiB", ""), cluster.log(name)
        cluster.kill("decode-1")  # the name is free once its lease is not renewed any more
        third = subprocess.Popen(elsewhere("decode-1"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        old = cluster.node("decode-1")["control"]
        wait_for(lambda: cluster.members().get("decode-1", {}).get("control", old) != old, "the node elsewhere")
        third.terminate()
        assert third.wait() == 0


def test_later_node_gets_traffic():
    with Cluster("later") as cluster:
        name = cluster.script("add", "prefill").stdout.strip()
        wait_for(lambda: cluster.members().get(name, {}).get("state") == "ready", "the new node")
        cluster.refresh()

        def ask():
            threads = [threading.Thread(target=lambda: cluster.chat(needle_prompt(300), temperature=0)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return cluster.metric(name, "sluice_prompt_tokens_total") > 0
        wait_for(ask, "work on the new node")
        cluster.wait_at_rest()


def test_restarted_node_is_used_again():
    with Cluster("restart") as cluster:
        assert cluster.chat("Who are you?", temperature=0).status == 200
        cluster.kill("decode-0")
        cluster.start("decode-0")
        wait_for(lambda: cluster.chat("Who are you?", temperature=0).status == 200, "the restarted node")
        cluster.wait_at_rest()


def test_sigterm_finishes_requests():
    with Cluster("sigterm", "--env", "*:SLUICE_FAULTS=decode.step=slow=10") as cluster:
        outcome = {}
        begun = threading.Event()

        def ask():
            outcome["answer"] = cluster.chat("Tell me a story about a bear named Wendy.", temperature=0, stream=True, max_tokens=60,
                                             ignore_eos=True, on_chunk=lambda answer: answer.token_ids and begun.set())
        thread = threading.Thread(target=ask)
        thread.start()
        assert begun.wait(60)
        for name in ("router-0", "decode-0", "prefill-0"):
            cluster.kill(name, "TERM")
        thread.join()
        answer = outcome["answer"]
        assert answer.done and len(answer.token_ids) == 60, (answer.error, len(answer.token_ids))
        wait_for(lambda: not any(cluster.alive(name) for name in ("router-0", "decode-0", "prefill-0")), "the daemons' end")
        assert not {"prefill-0", "decode-0", "router-0"} & set(cluster.members()), cluster.members()


def test_draining_node_gets_nothing_new():
    """The node that drains is held at a step until all has been seen; what runs there stays."""
    with Cluster("drain", "--decode", 2, "--env", "*:SLUICE_FAULTS=decode.step=hold@20", "--router-args=--move-drained=false") as cluster:
        begun = threading.Event()
        outcome = {}

        def on_chunk(answer):
            if answer.token_ids and not begun.is_set():
                outcome["node"] = answer.headers["x-sluice-decode-node"]
                begun.set()

        def ask():
            outcome["answer"] = cluster.chat("Tell me a story about a bear named Wendy.", on_chunk, temperature=0, stream=True,
                                             max_tokens=80, ignore_eos=True)
        thread = threading.Thread(target=ask)
        thread.start()
        assert begun.wait(60)
        name = outcome["node"]
        cluster.kill(name, "TERM")
        wait_for(lambda: cluster.members().get(name, {}).get("state") == "draining", "the draining record")
        for _ in range(3):
            answer = cluster.chat("Who are you?", temperature=0, max_tokens=4)
            assert answer.headers["x-sluice-decode-node"] != name
        wait_for(lambda: "fault decode.step: hold" in cluster.log(name), "the hold")
        os.kill(cluster.node(name)["pid"], signal.SIGUSR2)
        other = next(node for node in cluster.nodes("decode") if node["name"] != name)

        def ended():  # should the request's last tokens be lost on their way, the other node makes them again, and comes to its hold
            if "fault decode.step: hold" in cluster.log(other["name"]):
                os.kill(other["pid"], signal.SIGUSR2)
            return not thread.is_alive()
        wait_for(ended, "the answer's end")
        assert outcome["answer"].done and len(outcome["answer"].token_ids) == 80
        wait_for(lambda: not cluster.alive(name), "the drained node's end")


def test_etcd_away_serving_goes_on():
    with Cluster("etcd-away", "--lease", "2s") as cluster:
        cluster.kill("etcd-0")
        router = "router-0"
        wait_for(lambda: cluster.metrics(router).get("sluice_etcd_connected") == 0, "the router to notice")
        for _ in range(3):
            assert cluster.chat("Who are you?", temperature=0).status == 200
        cluster.start("etcd-0")
        wait_for(lambda: cluster.metrics(router).get("sluice_etcd_connected") == 1, "etcd again")
        wait_for(lambda: {"prefill-0", "decode-0"} <= set(cluster.members()), "the members' records")
        assert cluster.chat("Who are you?", temperature=0).status == 200
        cluster.wait_at_rest()


def ended(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_stopped_cluster_leaves_no_process():
    with Cluster("leaves") as cluster:
        assert json.loads(cluster.script("status", "--json").stdout) == cluster.refresh()
        pids = [node["pid"] for node in cluster.state["nodes"]]
        subprocess.run([sys.executable, SCRIPT, "down", "--dir", cluster.directory], check=True)
        assert all(ended(pid) for pid in pids), pids
