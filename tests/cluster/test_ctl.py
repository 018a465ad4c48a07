"""sluicectl: who is there, who owns each page, draining."""

import json
import threading

from lib import Cluster, needle_prompt, wait_for

STORY = "Tell me a story about a bear named Wendy."
SLOW = "*:SLUICE_FAULTS=decode.step=slow=30"  # a story outlasts the commands that must meet it, also where those are slow


def run_story(cluster, tokens=80):
    """(thread, begun, outcome): a streamed answer that is under way once begun is set."""
    begun, outcome = threading.Event(), {}

    def on_chunk(answer):
        if answer.token_ids and not begun.is_set():
            outcome["node"] = answer.headers["x-sluice-decode-node"]
            begun.set()

    def ask():
        outcome["answer"] = cluster.chat(STORY, on_chunk, temperature=0, stream=True, max_tokens=tokens, ignore_eos=True)
    thread = threading.Thread(target=ask)
    thread.start()
    assert begun.wait(60)
    return thread, outcome


def test_members():
    with Cluster("ctl-members", "--decode", 2) as cluster:
        table = cluster.ctl("members")
        assert table.returncode == 0 and {line.split()[0] for line in table.stdout.splitlines()[1:]} == \
            {"router-0", "prefill-0", "decode-0", "decode-1"}, table.stdout
        members = {member["name"]: member for member in json.loads(cluster.ctl("members", "--json").stdout)["members"]}
        assert members["decode-0"]["state"] == "ready" and members["decode-0"]["pages_free"] == members["decode-0"]["pages_total"]
        assert cluster.ctl("check").stdout == "all of 4 members are fine\n"
        cluster.kill("decode-1", "STOP")
        fails = cluster.ctl("--call-timeout", "1s", "check")
        assert fails.returncode == 1 and "decode-1 at" in fails.stderr and "does not answer" in fails.stderr, fails.stderr
        assert "no answer" in cluster.ctl("--call-timeout", "1s", "members").stdout
        cluster.kill("decode-1", "CONT")


def test_errors_say_what_to_do():
    with Cluster("ctl-errors") as cluster:
        unknown = cluster.ctl("drain", "decode-7")
        assert unknown.returncode == 1 and "no member decode-7" in unknown.stderr and "decode-0, prefill-0, router-0" in unknown.stderr
        router = cluster.ctl("drain", "router-0")
        assert router.returncode == 1 and "SIGTERM" in router.stderr, router.stderr
        nothing = cluster.ctl("resume", "decode-0")
        assert nothing.returncode == 1 and "no drain to take back" in nothing.stderr, nothing.stderr
        other = cluster.ctl("--cluster", "elsewhere", "members")
        assert other.returncode == 1 and "--cluster right" in other.stderr, other.stderr
        assert cluster.ctl("drain").returncode == 2 and cluster.ctl("dance").returncode == 2
        assert cluster.ctl("--at-rest", "check").returncode == 2
        cluster.kill("etcd-0")
        away = cluster.ctl("--etcd-timeout", "1s", "members")
        assert away.returncode == 1 and "is etcd running there?" in away.stderr, away.stderr


def test_ledger_names_the_owners():
    """A request that is held half way owns its pages on both sides, and the transfer has two ends; afterwards nobody owns any."""
    with Cluster("ctl-ledger", "--env", "prefill-0:SLUICE_FAULTS=prefill.group=hold@2") as cluster:
        outcome = {}
        thread = threading.Thread(target=lambda: outcome.update(answer=cluster.chat(needle_prompt(600), temperature=0)))
        thread.start()
        wait_for(lambda: "hold at hit 2" in cluster.log("prefill-0"), "the prefill to be held")

        def both():
            """Of the decode node alone: the held engine thread of the other one cannot answer."""
            found = json.loads(cluster.ctl("--call-timeout", "1s", "check", "--ledger", "--json").stdout or '{"nodes": []}')
            decode = [node for node in found["nodes"] if node["node"] == "decode-0"]
            return found if decode and [request["state"] for request in decode[0]["requests"]] == ["fetching"] else None
        found = wait_for(both, "the request on the decode node")
        assert found["unanswered"] == 1 and not found["violations"], found
        held = found["nodes"][0]["requests"][0]
        assert held["transfer"] == "receives" and held["pages"] >= held["block_count"] > 1, held
        assert held["router"] == "router-0" and held["epoch"] > 0 and held["deadline_ms"] > 0, held
        cluster.kill("prefill-0", "USR2")
        thread.join()
        assert outcome["answer"].status == 200 and "48213" in outcome["answer"].content
        cluster.wait_at_rest()
        found = cluster.check_ledger("--at-rest")
        assert found["ok"] and found["all"]["owned"] == 0 and found["all"]["requests"] == 0
        assert found["all"]["pages"] == found["all"]["free"] + found["all"]["kept"] and found["all"]["kept"] > 0, found["all"]


def test_ledger_under_load():
    """Nothing is wrong while requests come and go, on memory and on the second tier; what runs is not at rest."""
    with Cluster("ctl-load", "--decode", 2, "--env", SLOW, "--env", "decode-0:SLUICE_KV_DISK=build/test-clusters/ctl.tier:8MiB") as cluster:
        thread, outcome = run_story(cluster, 200)
        threads = [threading.Thread(target=cluster.chat, args=(needle_prompt(200, seed=seed),), kwargs={"temperature": 0, "n": 2})
                   for seed in range(4)]
        for other in threads:
            other.start()
        running = 0
        while thread.is_alive():
            running += cluster.check_ledger()["all"]["requests"]
        busy = cluster.state  # the story may be over: only what was seen counts
        assert running > 0 and busy
        for other in [thread, *threads]:
            other.join()
        assert len(outcome["answer"].token_ids) == 200
        cluster.wait_at_rest()


def test_not_at_rest_is_found():
    with Cluster("ctl-busy", "--env", SLOW) as cluster:
        thread, _ = run_story(cluster, 120)
        found = cluster.ctl("check", "--ledger", "--at-rest")
        assert found.returncode == 1 and "VIOLATION not-at-rest: decode-0: request " in found.stdout, found.stdout
        thread.join()


def test_drain_finishes_and_leaves():
    with Cluster("ctl-drain", "--decode", 2, "--env", SLOW, "--router-args=--move-drained=false") as cluster:
        thread, outcome = run_story(cluster)
        drained = cluster.ctl("drain", outcome["node"])
        assert drained.returncode == 0 and drained.stdout == f"{outcome['node']} has left\n", (drained.stdout, drained.stderr)
        assert "1 requests left" in drained.stderr, drained.stderr
        thread.join()
        assert outcome["answer"].done and len(outcome["answer"].token_ids) == 80
        wait_for(lambda: not cluster.alive(outcome["node"]), "the drained node's end")
        cluster.check_ledger()


def test_drain_moves_and_leaves():
    """With room elsewhere the node leaves long before its requests would have ended."""
    with Cluster("ctl-moves", "--decode", 2, "--env", SLOW) as cluster:
        expected = cluster.chat(STORY, temperature=0, max_tokens=300, ignore_eos=True, stream=True).token_ids
        thread, outcome = run_story(cluster, 300)
        drained = cluster.ctl("drain", outcome["node"])
        assert drained.returncode == 0 and drained.stdout == f"{outcome['node']} has left\n", (drained.stdout, drained.stderr)
        assert thread.is_alive()
        thread.join()
        assert outcome["answer"].token_ids == expected
        assert cluster.metrics("router-0")['sluice_request_migrations_total{reason="drained"}'] == 1


def test_drain_is_bounded():
    """What has not finished in time goes on at the other node, with the same tokens."""
    with Cluster("ctl-bounded", "--decode", 2, "--env", SLOW, "--router-args=--move-drained=false") as cluster:
        expected = cluster.chat(STORY, temperature=0, max_tokens=150, ignore_eos=True, stream=True).token_ids
        thread, outcome = run_story(cluster, 150)
        drained = cluster.ctl("drain", outcome["node"], "--timeout", "500ms", "--json")
        assert drained.returncode == 1 and json.loads(drained.stdout)["unfinished"] == 1, (drained.stdout, drained.stderr)
        thread.join()
        assert outcome["answer"].token_ids == expected


def test_resume_takes_a_drain_back():
    with Cluster("ctl-resume", "--env", SLOW) as cluster:
        thread, outcome = run_story(cluster, 150)
        drained = {}
        drainer = threading.Thread(target=lambda: drained.update(result=cluster.ctl("drain", "decode-0")))
        drainer.start()
        wait_for(lambda: cluster.members()["decode-0"]["state"] == "draining", "the draining record")
        resumed = cluster.ctl("resume", "decode-0")
        assert resumed.returncode == 0 and resumed.stdout == "decode-0 is ready\n", (resumed.stdout, resumed.stderr)
        drainer.join()
        assert drained["result"].returncode == 1 and "was taken back" in drained["result"].stderr, drained["result"].stderr
        assert cluster.chat("Who are you?", temperature=0).status == 200
        thread.join()
        assert len(outcome["answer"].token_ids) == 150 and cluster.members()["decode-0"]["state"] == "ready"
        cluster.wait_at_rest()
