"""The controller: who leads, and as many nodes of each role as are wanted, while clients are served."""

import json
import threading

from lib import REFERENCE, Cluster, wait_for

QUESTION = "Who are you?"


class Load:
    """Clients that ask one thing after the other until the end; every answer must be the one of one process."""

    def __init__(self, cluster, clients=3):
        self.cluster, self.ended, self.answers, self.wrong = cluster, threading.Event(), 0, []
        self.expected = REFERENCE.run(["--chat", "--max-tokens", "40", "--temperature", "0", QUESTION])["ids"]
        self.nodes = set()
        self.threads = [threading.Thread(target=self.ask) for _ in range(clients)]

    def ask(self):
        while not self.ended.is_set():
            answer = self.cluster.chat(QUESTION, temperature=0, max_tokens=40, stream=True)
            if not answer.done or answer.token_ids != self.expected:
                self.wrong.append((answer.status, answer.error))
            self.nodes |= {answer.headers.get("x-sluice-decode-node"), answer.headers.get("x-sluice-prefill-node")}
            self.answers += 1

    def reach(self, node, others):
        """A request on the node; the others are cordoned meanwhile, as the least loaded first one may do for all."""
        for other in others:
            self.cluster.ctl("cordon", other)
        wait_for(lambda: self.wrong or node in self.nodes, f"a request on {node}")
        for other in others:
            self.cluster.ctl("uncordon", other)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        wait_for(lambda: self.answers > 3 or self.wrong, "answers")
        return self

    def __exit__(self, *unused):
        self.ended.set()
        for thread in self.threads:
            thread.join()
        assert not self.wrong, self.wrong[:3]


def leader(cluster):
    return cluster.ctl_json("scale", "plan")["leader"]


def test_scaled_under_load():
    """1P1D -> 1P3D -> 3P1D by `scale apply`: no request fails, the new nodes work, the old ones have left; the audit says who and what."""
    with Cluster("scale-load", "--routers", 2) as cluster:
        dry = cluster.ctl_json("scale", "apply", "--decode", "3", "--dry-run")
        assert dry["dry_run"] and dry["decode_wanted"] == 3 and dry["prefill_wanted"] == 1 and not cluster.ctl_json("scale", "plan")["set"], dry
        with Load(cluster) as load:
            up = cluster.ctl("scale", "apply", "--prefill", "1", "--decode", "3", "--json")
            assert up.returncode == 0 and json.loads(up.stdout)["decode"] == 3, (up.stdout, up.stderr)
            cluster.refresh()
            load.reach("decode-1", ("decode-0", "decode-2"))
            load.reach("decode-2", ("decode-0", "decode-1"))
            over = cluster.ctl("scale", "apply", "--prefill", "3", "--decode", "1", "--json")
            assert over.returncode == 0, (over.stdout, over.stderr)
            now = json.loads(over.stdout)
            assert now["prefill"] == 3 and now["decode"] == 1, now
            cluster.refresh()
            load.reach("prefill-1", ("prefill-0", "prefill-2"))
            load.reach("prefill-2", ("prefill-0", "prefill-1"))
        wait_for(lambda: not cluster.alive("decode-1") and not cluster.alive("decode-2"), "the nodes too many to end")
        plan = cluster.ctl_json("scale", "plan")
        assert plan["set"] and plan["prefill"] == 3 and plan["decode"] == 1 and plan["hook"], plan
        audit = [e for e in cluster.ctl_json("events", "--limit", "1000")["events"] if e["kind"].startswith("scale") and e["actor"]]
        assert [e["kind"] for e in audit] == ["scale apply", "scale hook"] * 2, audit
        assert audit[1]["actor"] == f"controller {plan['leader']}" and audit[1]["text"] == "prefill 1 -> 1, decode 1 -> 3", audit
        assert cluster.metrics(plan["leader"])['sluice_scale_wanted{role="prefill"}'] == 3
        cluster.wait_at_rest()


def test_one_leads():
    """One of three routers leads; killed, another one does, by a higher fence; what is wanted is then done by that one."""
    with Cluster("scale-leader", "--routers", 3, "--lease", "2s") as cluster:
        first = wait_for(lambda: leader(cluster), "a leader")
        record = cluster.etcdctl("get", "--print-value-only", "/sluice/v1/local/leader").strip()
        assert record == first, record
        wait_for(lambda: sum(cluster.metrics(f"router-{i}").get("sluice_leader", 0) for i in range(3)) == 1, "one leader in the metrics")
        others = [f"router-{i}" for i in range(3) if f"router-{i}" != first]
        cluster.kill(first)
        second = wait_for(lambda: next((name for name in others if "this router leads" in cluster.log(name)), None), "another leader")
        fence = [int(line.rsplit("fence ", 1)[1].rstrip(")")) for name in (first, second) for line in cluster.log(name).splitlines()
                 if "this router leads (fence" in line]
        assert fence[0] < fence[1], fence
        address = cluster.node(second)["control"]
        applied = cluster.ctl_router("scale", "apply", "--decode", "2", address=address)
        assert applied.returncode == 0, (applied.stdout, applied.stderr)
        assert cluster.metrics(second)["sluice_leader"] == 1
        cluster.refresh()


def test_a_stopped_leader_does_nothing():
    """A leader that is stopped while another is elected wakes up with a wish in its hands: it does nothing, and says that it leads no more."""
    with Cluster("scale-stopped", "--routers", 2, "--lease", "2s") as cluster:
        first = wait_for(lambda: leader(cluster), "a leader")
        second = "router-1" if first == "router-0" else "router-0"
        cluster.kill(first, "STOP")
        wait_for(lambda: "this router leads" in cluster.log(second), "another leader")
        address = cluster.node(second)["control"]
        applied = cluster.ctl_router("scale", "apply", "--decode", "2", address=address)
        assert applied.returncode == 0, (applied.stdout, applied.stderr)
        cluster.kill(first, "CONT")
        wait_for(lambda: "this router leads no more" in cluster.log(first), "the old leader to notice")
        assert "the hook runs" not in cluster.log(first)
        acts = [e for e in json.loads(cluster.ctl_router("events", "--json", address=address).stdout)["events"] if e["kind"] == "scale hook" and e["actor"]]
        assert [e["actor"] for e in acts] == [f"controller {second}"], acts


def test_misuse_and_a_hook_that_fails():
    with Cluster("scale-misuse", "--router-args", "--scale-hook false") as cluster:
        for arguments, code, text in (((), 2, "needs --prefill N, --decode N or both"), (("--decode", "0"), 1, "at least one node"),
                                      (("--decode", "2000"), 2, "not within")):
            wrong = cluster.ctl("scale", "apply", *arguments)
            assert wrong.returncode == code and text in wrong.stderr, wrong
        failed = cluster.ctl("scale", "apply", "--decode", "2", "--timeout", "6s")
        assert failed.returncode == 1 and "the hook failed (exit code 1)" in failed.stderr, failed.stderr
        assert "the hook failed" in cluster.ctl("scale", "plan").stdout
        cluster.etcdctl("put", "/sluice/v1/local/scale", '{"prefill":1}')
        wait_for(lambda: not cluster.ctl_json("scale", "plan")["set"], "an unreadable wish to be none")
