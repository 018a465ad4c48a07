"""sluicectl's hand on a running cluster: cordon, requests, settings, events, weights, doctor; by etcd and by a router; misuse."""

import json
import os
import shutil
import subprocess
import threading

from lib import BIN, MODEL, ROOT, Cluster, wait_for
from test_ctl import SLOW, STORY, run_story

QUESTION = "Who are you?"


def states(cluster):
    return {member["name"]: member["state"] for member in cluster.ctl_json("members")["members"]}


def test_by_a_router():
    """The same answers without etcd; a router that is not there, or no router at all, is told clearly."""
    with Cluster("op-router", "--decode", 2) as cluster:
        by_etcd = cluster.ctl_json("members")["members"]
        by_router = json.loads(cluster.ctl_router("members", "--json").stdout)["members"]
        for field in ("name", "role", "control", "incarnation", "version", "numerics_id", "weights_version", "pages_total"):
            assert [member.get(field) for member in by_etcd] == [member.get(field) for member in by_router], field
        assert cluster.ctl_router("check").stdout == "all of 4 members are fine\n"
        assert json.loads(cluster.ctl_router("check", "--ledger", "--json").stdout)["ok"]
        drained = cluster.ctl_router("drain", "decode-1")
        assert drained.returncode == 0 and drained.stdout == "decode-1 has left\n", (drained.stdout, drained.stderr)
        nobody = cluster.ctl_router("--call-timeout", "1s", "members", address="127.0.0.1:1")
        assert nobody.returncode == 1 and "--router: the router at 127.0.0.1:1 does not answer" in nobody.stderr, nobody.stderr
        node = cluster.ctl_router("members", address=cluster.node("decode-0")["control"])
        assert node.returncode == 1 and "ListMembers" in node.stderr, node.stderr
        http = cluster.ctl_router("--call-timeout", "1s", "members", address=cluster.state["http"])
        assert http.returncode == 1 and "--router" in http.stderr, http.stderr


def test_misuse():
    def ctl(*arguments):
        return subprocess.run([os.path.join(BIN, "sluicectl"), *arguments], capture_output=True, text=True)
    for arguments, text in (((), "which command?"), (("dance",), "no such command: dance"), (("settings",), "settings get, settings set"),
                            (("settings", "set", "queue-max"), "needs NAME VALUE"), (("cordon",), "needs NODE"),
                            (("members", "please"), "one word too many: please"), (("--dry-run", "members"), "--dry-run does not go with members"),
                            (("--watch", "drain", "x"), "--watch does not go with drain"),
                            (("members", "--reason", "x"), "--reason goes with cordon, not with members"),
                            (("members", "--limit", "0"), "not within 1 to 4096"), (("completion", "tcsh"), "there is bash and zsh"),
                            (("members", "--jsn"), "did you mean --json?")):
        result = ctl(*arguments)
        assert result.returncode == 2 and text in result.stderr and not result.stdout, (arguments, result)
    assert ctl("--help").returncode == 0 and "weights reload [NODE..]" in ctl("--help").stdout


def test_completion_and_manual():
    """Made from the table of commands: all of them, in a form that a shell and man accept."""
    def ctl(*arguments):
        return subprocess.run([os.path.join(BIN, "sluicectl"), *arguments], capture_output=True, text=True, check=True).stdout
    commands = [line.split("  ")[1] for line in ctl("--help").split("commands\n")[1].split("\n\n")[0].splitlines()]
    script = ctl("completion", "bash")
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0

    def complete(*words):
        lines = f"COMP_WORDS=({' '.join(words)} ''); COMP_CWORD={len(words)}; _sluicectl; echo ${{COMPREPLY[*]}}"
        return subprocess.run(["bash", "-c", script + lines], capture_output=True, text=True, check=True).stdout.split()
    assert set(complete("sluicectl")) == {command.split()[0] for command in commands}
    assert complete("sluicectl", "--json", "settings") == ["get", "set"]
    assert "bashcompinit" in ctl("completion", "zsh")
    page = ctl("manual")
    assert page.startswith(".TH SLUICECTL 1")
    for command in commands:
        assert f".B {command.split(' [')[0].split()[0]}" in page, command


def test_cordon():
    """A cordoned node finishes what it has and gets nothing more, also after a restart; the other does all; uncordoned it works again."""
    with Cluster("op-cordon", "--decode", 2, "--routers", 2, "--env", SLOW) as cluster:
        thread, outcome = run_story(cluster, 200)
        node = outcome["node"]
        other = "decode-1" if node == "decode-0" else "decode-0"
        dry = cluster.ctl_json("cordon", node, "--dry-run", "--reason", "fan")
        assert dry["changed"] and dry["running"] == 1 and dry["left"] == 1, dry
        assert states(cluster)[node] == "ready"
        told = cluster.ctl("cordon", node, "--reason", "fan is loud")
        assert told.returncode == 0 and f"{node} is cordoned: it finishes its 1 requests" in told.stdout, told
        wait_for(lambda: all(f"node {node} is cordoned" in cluster.log(f"router-{i}") for i in (0, 1)), "both routers to follow")
        assert states(cluster)[node] == "cordoned"
        assert "is cordoned already" in cluster.ctl("cordon", node).stdout
        again = cluster.ctl_json("cordon", node, "--reason", "fan is being changed")
        assert again["changed"] and again["reason"] == "fan is being changed", again
        assert not cluster.ctl_json("cordon", node)["changed"] and cluster.ctl_json("cordon", node)["reason"] == again["reason"]
        for _ in range(4):
            assert cluster.chat(QUESTION, temperature=0, max_tokens=4).headers["x-sluice-decode-node"] == other
        thread.join()
        assert len(outcome["answer"].token_ids) == 200 and outcome["node"] == node
        cluster.kill(node)
        wait_for(lambda: not cluster.alive(node), "its end")
        cluster.start(node)
        wait_for(lambda: states(cluster).get(node) == "cordoned", "the restarted node to be cordoned still")
        assert cluster.chat(QUESTION, temperature=0, max_tokens=4).headers["x-sluice-decode-node"] == other
        last = cluster.ctl_json("cordon", other, "--dry-run")
        assert last["left"] == 0, last
        assert cluster.ctl("uncordon", node).returncode == 0
        wait_for(lambda: states(cluster)[node] == "ready", "the uncordoned node")
        cluster.ctl("cordon", other)
        wait_for(lambda: cluster.chat(QUESTION, temperature=0, max_tokens=4).headers.get("x-sluice-decode-node") == node, "its next request")
        router = cluster.ctl("cordon", "router-0")
        assert router.returncode == 1 and "it is a router" in router.stderr, router.stderr
        nobody = cluster.ctl("cordon", "decode-9")
        assert nobody.returncode == 1 and "no node decode-9" in nobody.stderr, nobody.stderr
        long = cluster.ctl("cordon", node, "--reason", "x" * 300)
        assert long.returncode == 1 and "at most 255 bytes" in long.stderr, long.stderr
        loud = cluster.ctl("cordon", node, "--reason", "a\nb\x1b[31m")
        assert loud.returncode == 1 and "without control characters" in loud.stderr, loud.stderr


def test_requests_and_cancel():
    """What runs is listed, on all threads of all routers; a cancelled request ends with an error that says so, and leaves nothing behind."""
    with Cluster("op-requests", "--routers", 2, "--router-args", "--threads 2", "--env", SLOW) as cluster:
        assert cluster.ctl_json("requests")["requests"] == []
        thread, outcome = run_story(cluster, 2000)  # to be cancelled
        listed = cluster.ctl_json("requests")
        assert listed["total"] == 1 and listed["unanswered"] == 0, listed
        row = listed["requests"][0]
        assert row["state"] == "decoding" and row["kind"] == "chat" and row["decode"] == "decode-0" and row["max_tokens"] == 2000, row
        assert row["router"] == "router-0" and row["generated_tokens"] > 0 and row["prompt_tokens"] > 5, row
        assert row["id"] in cluster.ctl("requests").stdout
        bound = {m["name"]: m.get("pages_bound") for m in cluster.ctl_json("members")["members"]}
        assert bound["decode-0"] > 0 and bound["prefill-0"] == 0, bound
        drawn = sum(cluster.metric(f"router-{i}", "sluice_generation_tokens_total") for i in (0, 1))
        assert 0 < drawn < 2000, drawn  # as they come, not when all are there
        cancelled = cluster.ctl("cancel", row["id"])
        assert cancelled.returncode == 0 and f"{row['id']} is cancelled, with" in cancelled.stdout, cancelled
        thread.join()
        answer = outcome["answer"]
        assert answer.error and "cancelled by" in answer.error["message"] and len(answer.token_ids) < 2000, answer.error
        cluster.wait_at_rest()
        gone = cluster.ctl("cancel", row["id"])
        assert gone.returncode == 1 and "has no request" in gone.stderr, gone.stderr
        assert cluster.ctl("cancel", "x" * 100).returncode == 1
        several = {}
        choices = threading.Thread(target=lambda: several.update(answer=cluster.chat(STORY, temperature=1, n=3, max_tokens=2000, ignore_eos=True)))
        choices.start()
        row = wait_for(lambda: [r for r in cluster.ctl_json("requests")["requests"] if r["choices"] == 3 and r["state"] == "decoding"],
                       "the three choices")[0]
        assert cluster.ctl("cancel", f"chatcmpl-{row['id']}").returncode == 0
        choices.join()
        assert several["answer"].error["type"] == "server_error", several["answer"].body
        assert several["answer"].status == 499 and several["answer"].error["message"].endswith("cancelled by an operator"), several["answer"].body
        cluster.wait_at_rest()
        assert any(event["kind"] == "request" and event["subject"] == row["id"] for event in cluster.ctl_json("events")["events"])


def test_settings():
    """Changed while the routers run, on all of them, kept over a restart, taken back; what is wrong is refused."""
    with Cluster("op-settings", "--routers", 2, "--router-args", "--queue-max 7") as cluster:
        def setting(name):
            return {s["name"]: s for s in cluster.ctl_json("settings", "get")["settings"]}[name]
        before = setting("queue-max")
        assert before["value"] == "7" and not before["set"] and setting("queue-timeout")["value"] == "1m", before
        dry = cluster.ctl_json("settings", "set", "queue-max", "3", "--dry-run")
        assert dry["before"] == "7" and dry["after"] == "3" and dry["changed"] and setting("queue-max")["value"] == "7", dry
        told = cluster.ctl("settings", "set", "queue-max", "3")
        assert told.returncode == 0 and told.stdout == "queue-max: 7 -> 3\n", told
        cluster.ctl("settings", "set", "place-timeout", "300ms")
        settings = '{"queue-max":"3","place-timeout":"300ms"}'
        wait_for(lambda: all(f"cluster settings: {settings}" in cluster.log(f"router-{i}") for i in (0, 1)), "both routers to follow")
        assert json.loads(cluster.etcdctl("get", "--print-value-only", "/sluice/v1/local/settings")) == json.loads(settings)
        cluster.ctl("cordon", "decode-0")
        wait_for(lambda: "node decode-0 is cordoned" in cluster.log("router-0"), "the cordon")  # by the one that is asked
        refused = cluster.chat(QUESTION, max_tokens=2)  # after 300 ms, not 5 s; the time is no verdict, the status is
        assert refused.status == 503, refused.body
        cluster.ctl("uncordon", "decode-0")
        cluster.kill("router-0", "TERM")
        wait_for(lambda: not cluster.alive("router-0"), "the router's end")
        cluster.start("router-0")
        wait_for(lambda: f"cluster settings: {settings}" in cluster.log("router-0").rsplit("etcd lists", 1)[-1], "the settings after a restart")
        assert setting("queue-max")["set"] and setting("queue-max")["own"] == "7"
        assert cluster.ctl("settings", "set", "queue-max", "default").stdout == "queue-max: 3 -> 7\n"
        wait_for(lambda: setting("queue-max")["value"] == "7", "the router's own again")
        for arguments, text in ((("queue-max", "0"), "not within 1 to 16384"), (("queue-time", "1s"), "no setting \"queue-time\": `sluicectl settings get`"),
                                (("queue-timeout", "soon"), "queue-timeout")):
            wrong = cluster.ctl("settings", "set", *arguments)
            assert wrong.returncode == 1 and text in wrong.stderr, wrong.stderr
        assert cluster.ctl("settings", "get", "nonsense").returncode == 1
        cluster.etcdctl("put", "/sluice/v1/local/settings", '{"queue-max":"5","of-the-future":"1"}')
        wait_for(lambda: setting("queue-max")["value"] == "5", "what is understood to be followed")
        wait_for(lambda: 'no setting "of-the-future"' in cluster.log("router-0"), "a line about what is not")
        cluster.etcdctl("put", "/sluice/v1/local/settings", "not json")
        wait_for(lambda: setting("queue-max")["value"] == "7", "an unreadable record to set nothing")


def test_events_are_audited():
    """Who did what to which node, in order, beside what the router saw; the ring of the audit is bounded."""
    with Cluster("op-events", "--decode", 2) as cluster:
        cluster.ctl("cordon", "decode-1", "--reason", "fan")
        cluster.ctl("settings", "set", "attempts", "4")
        cluster.ctl("drain", "decode-1")
        def audited():
            return [e for e in cluster.ctl_json("events")["events"] if e["actor"]]
        wait_for(lambda: len(audited()) == 3, "the audit")
        events = audited()
        assert [(e["kind"], e["subject"]) for e in events] == [("cordon", "decode-1"), ("settings set", "attempts"), ("drain", "decode-1")], events
        assert events[0]["text"] == "fan" and events[1]["text"] == "3 -> 4" and all("unverified" in e["actor"] for e in events), events
        wait_for(lambda: any(e["kind"] == "member" and e["subject"] == "decode-1" and e["text"] == "left"
                             for e in cluster.ctl_json("events", "--limit", "1000")["events"]), "the router to see it leave")
        assert len(cluster.ctl_json("events", "--limit", "2")["events"]) == 2
        cluster.etcdctl("put", "/sluice/v1/local/audit/next", "1000")  # as after a thousand: the oldest is written over
        cluster.ctl("uncordon", "decode-1")
        records = cluster.etcdctl("get", "--prefix", "/sluice/v1/local/audit/").splitlines()
        keys = [line for line in records[::2]]
        assert keys == [f"/sluice/v1/local/audit/{k}" for k in ("000", "001", "002", "next")], keys
        assert json.loads(records[1])["action"] == "uncordon" and json.loads(records[1])["sequence"] == 1000


def test_watch():
    with Cluster("op-watch") as cluster:
        lines = cluster.ctl("members", "--json", "--watch", "--interval", "50ms", "--count", "3").stdout.splitlines()
        assert len(lines) == 3 and all(len(json.loads(line)["members"]) == 3 for line in lines), lines


def test_node_version_size():
    with Cluster("op-node") as cluster:
        node = cluster.ctl_json("node", "decode-0")
        assert node["state"] == "ready" and node["role"] == "decode" and node["pages_free"] == node["pages_total"] > 0, node
        assert "slots" in cluster.ctl("node", "decode-0").stdout and cluster.ctl_json("node", "router-0")["role"] == "router"
        assert cluster.ctl("node", "decode-9").returncode == 1
        assert {m["name"] for m in cluster.ctl_json("version")["members"]} == {"router-0", "prefill-0", "decode-0"}
        size = cluster.ctl_json("size", "--prompt-tokens", "1000", "--answer-tokens", "24", "--requests", "1000")
        assert size["pages_per_request"] == 16 and size["fit_per_node"] == min(64, node["pages_total"] // 16), size
        assert size["decode_nodes_needed"] == -(-1000 // size["fit_per_node"]), size
        cluster.kill("decode-0")
        assert cluster.ctl("--call-timeout", "1s", "node", "decode-0").returncode == 1
        nothing = cluster.ctl("--call-timeout", "1s", "size")
        assert nothing.returncode == 1 and "no decode node answers" in nothing.stderr, nothing.stderr


def test_doctor():
    """A healthy cluster is well, with warnings for what has no spare; what is broken is named with what to do."""
    with Cluster("op-doctor", "--decode", 2, "--lease", "2s") as cluster:
        wait_for(lambda: cluster.ctl("doctor").returncode == 0, "a healthy cluster")
        found = cluster.ctl_json("doctor")
        assert found["failures"] == 0, found
        assert {(f["subject"], f["verdict"]) for f in found["findings"]} >= {("etcd", "ok"), ("router-0", "ok"), ("routers", "warn"), ("prefill", "warn"), ("decode", "ok")}
        assert "0 failures" in cluster.ctl("doctor").stdout
        by_router = cluster.ctl_router("doctor", "--json")
        assert by_router.returncode == 0 and json.loads(by_router.stdout)["ok"], by_router.stdout
        cluster.ctl("cordon", "decode-1")
        told = wait_for(lambda: (lambda run: run.stdout if "sluicectl uncordon decode-1" in run.stdout else None)(cluster.ctl("doctor")), "advice")
        assert "warn  decode           one node is ready" in told, told
        cluster.kill("decode-0", "STOP")
        sick = cluster.ctl("--call-timeout", "1s", "doctor")
        assert sick.returncode == 1 and "FAIL  decode-0" in sick.stdout, sick.stdout
        cluster.kill("decode-0", "CONT")


def test_weights_reload_rolls():
    """All nodes, prefill and decode in turn, under one version; requests go on; what cannot be loaded stops the rollout and is told."""
    directory = os.path.join(ROOT, "build", "test-clusters", "op-weights-model")
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(MODEL, directory)
    with Cluster("op-weights", "--decode", 2) as cluster:
        dry = cluster.ctl_json("weights", "reload", "--model", directory, "--dry-run")
        assert [n["node"] for n in dry["nodes"]] == ["prefill-0", "decode-0", "decode-1"] and dry["version"] == 2, dry
        ended, failures = threading.Event(), []

        def ask():
            while not ended.is_set():
                answer = cluster.chat(QUESTION, temperature=0, max_tokens=8)
                if answer.status != 200:
                    failures.append(answer.body)
        client = threading.Thread(target=ask)
        client.start()
        done = cluster.ctl("weights", "reload", "--model", directory, "--json")
        ended.set()
        client.join()
        assert done.returncode == 0 and not failures, (done, failures)
        rolled = json.loads(done.stdout)
        assert [n["after"] for n in rolled["nodes"]] == [2, 2, 2] and rolled["left"] == 0, rolled
        assert {m["weights_version"] for m in cluster.ctl_json("members")["members"] if m["role"] != "router"} == {"2"}
        bad = cluster.ctl("weights", "reload", "decode-1", "--model", "/nowhere")
        assert bad.returncode == 1 and "0 of 1 nodes have version 3" in bad.stderr, bad.stderr
        assert cluster.ctl("weights", "reload").returncode == 2
        assert cluster.ctl("weights", "reload", "router-0", "--model", directory).returncode == 1
        wait_for(lambda: sum(e["kind"] == "weights reload" for e in cluster.ctl_json("events")["events"]) == 4, "four reloads in the audit")
        cluster.wait_at_rest()
    shutil.rmtree(directory)


def test_drain_dry_run():
    with Cluster("op-dry", "--decode", 2) as cluster:
        plan = cluster.ctl_json("drain", "decode-1", "--dry-run")
        assert plan["others"] == 1 and plan["requests"] == 0 and plan["state"] == "ready", plan
        alone = cluster.ctl("drain", "prefill-0", "--dry-run")
        assert alone.returncode == 0 and "0 other nodes can do its work: new requests would wait" in alone.stdout, alone.stdout
        assert states(cluster)["decode-1"] == "ready"


def test_top():
    """Live figures: what runs now, rates between two looks, latencies of what ended; a node that died is listed as such."""
    with Cluster("op-top", "--env", SLOW) as cluster:
        thread, _ = run_story(cluster, 200)
        looks = [json.loads(line) for line in cluster.ctl("top", "--json", "--interval", "300ms", "--count", "4").stdout.splitlines()]
        assert len(looks) == 4 and looks[0]["running"] == 1 and looks[0]["nodes"][0]["slots_used"] == 1, looks
        thread.join()
        assert cluster.chat(QUESTION, temperature=0, max_tokens=20).status == 200
        last = cluster.ctl_json("top", "--count", "1")
        assert last["generated_tokens"] >= 200 and last["ttft_us"] > 0 and last["tpot_us"] > 0 and last["silent"] == 0, last
        table = cluster.ctl("top", "--count", "1").stdout
        assert "decode-0" in table and "first token" in table and "[..........]" in table, table
        cluster.kill("decode-0")
        dead = cluster.ctl_json("top", "--count", "1", "--call-timeout", "1s")
        assert dead["silent"] == 1 and dead["nodes"][0]["state"] == "no answer", dead
