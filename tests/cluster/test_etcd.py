"""etcd loses leases, its leader, its quorum: serving goes on, no request fails."""

import http.client
import json
import os
import subprocess
import threading

from lib import PATIENCE, REFERENCE, Cluster, wait_for

QUESTION = "Who are you?"


class Load:
    """Clients that ask one thing after the other until the end; every answer must be the one of one process."""

    def __init__(self, cluster, clients=2):
        self.cluster, self.ended, self.answers, self.wrong = cluster, threading.Event(), 0, []
        self.expected = REFERENCE.run(["--chat", "--max-tokens", "40", "--temperature", "0", QUESTION])["ids"]
        self.threads = [threading.Thread(target=self.ask) for _ in range(clients)]

    def ask(self):
        while not self.ended.is_set():
            answer = self.cluster.chat(QUESTION, temperature=0, max_tokens=40, stream=True)
            if not answer.done or answer.token_ids != self.expected:
                self.wrong.append((answer.status, answer.error))
            self.answers += 1

    def more(self, count=4):
        """So many answers later."""
        wanted = self.answers + count
        wait_for(lambda: self.answers >= wanted or self.wrong, "answers")

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        self.more()
        return self

    def __exit__(self, *unused):
        self.ended.set()
        for thread in self.threads:
            thread.join()
        assert not self.wrong, self.wrong


def serving(cluster):
    return {"prefill-0", "decode-0", "router-0"} <= set(cluster.members())


def revoke_all(cluster):
    """By etcd's gateway, over one connection: who has lost its lease takes another one within milliseconds, and all shall have lost theirs by then."""
    connection = http.client.HTTPConnection(cluster.node("etcd-0")["control"], timeout=PATIENCE)

    def call(path, body):
        connection.request("POST", f"/v3/lease/{path}", json.dumps(body))
        return json.loads(connection.getresponse().read())
    leases = [lease["ID"] for lease in call("leases", {})["leases"]]
    for lease in leases:
        call("revoke", {"ID": lease})


def test_every_lease_is_lost_at_once():
    """The view freezes, all go on serving, each takes a new lease."""
    with Cluster("leases", "--decode", 2) as cluster:
        before = {name: record["incarnation"] for name, record in cluster.members().items()}
        with Load(cluster) as load:
            revoke_all(cluster)
            wait_for(lambda: "members lost their leases at once" in cluster.log("router-0"), "the frozen view")
            load.more()
            wait_for(lambda: set(before) <= set(cluster.members()) and "most members have their leases" in cluster.log("router-0"),
                     "new leases", 30)
            load.more()
        assert before == {name: record["incarnation"] for name, record in cluster.members().items()}
        assert cluster.metric("router-0", "sluice_view_frozen") == 0
        assert cluster.metric("router-0", "sluice_request_migrations_total") == 0
        cluster.wait_at_rest()


def leader(cluster):
    """Asked of each alone: one of them may be down."""
    for node in cluster.nodes("etcd"):
        result = subprocess.run(["etcdctl", "--endpoints", f"http://{node['control']}", "endpoint", "status", "-w", "json"],
                                capture_output=True, text=True)
        if result.returncode != 0 or not result.stdout:
            continue
        status = json.loads(result.stdout)[0]["Status"]
        if status.get("leader") == status["header"]["member_id"]:
            return node["name"]
    return None


def move_leader(cluster):
    """Who led; None: it could not be moved, as one may be elected by itself in between."""
    first = leader(cluster)
    if not first:
        return None
    status = json.loads(cluster.etcdctl("endpoint", "status", "-w", "json"))
    other = next(s["Status"]["header"]["member_id"] for s in status if s["Status"]["leader"] != s["Status"]["header"]["member_id"])
    moved = subprocess.run(["etcdctl", "--endpoints", f"http://{cluster.node(first)['control']}", "move-leader", f"{other:x}"],
                           capture_output=True, env={**os.environ, "ETCDCTL_API": "3"})
    return first if moved.returncode == 0 else None


def full_three_lose_their_leader_and_their_quorum():
    with Cluster("etcd-3", "--etcd-nodes", 3, "--lease", "3s") as cluster:
        with Load(cluster) as load:
            first = wait_for(lambda: leader(cluster), "a leader")
            cluster.kill(first)
            second = wait_for(lambda: leader(cluster), "another leader")
            assert second != first
            wait_for(lambda: cluster.metrics("router-0").get("sluice_etcd_connected") == 1, "the router to be connected")
            load.more()
            assert serving(cluster)
            cluster.kill(second)  # one of three is left: no quorum
            wait_for(lambda: cluster.metrics("router-0").get("sluice_etcd_connected") == 0, "the router to notice")
            load.more()
            cluster.start(first)
            cluster.start(second)
            wait_for(lambda: cluster.metrics("router-0").get("sluice_etcd_connected") == 1, "etcd again")
            wait_for(lambda: serving(cluster), "the members' records")
            load.more()
        assert cluster.metric("router-0", "sluice_request_migrations_total") == 0
        cluster.wait_at_rest()


def test_compacted_while_a_router_sleeps():
    """What a router missed is compacted away: it lists again, and knows who is cordoned and who has gone."""
    with Cluster("etcd-compacted", "--decode", 2, "--routers", 2) as cluster:
        cluster.kill("router-0", "STOP")
        address = cluster.node("router-1")["control"]
        assert cluster.ctl_router("cordon", "decode-1", address=address).returncode == 0
        assert cluster.ctl_router("settings", "set", "attempts", "5", address=address).returncode == 0
        revision = json.loads(cluster.etcdctl("get", "x", "-w", "json"))["header"]["revision"]
        cluster.etcdctl("compact", str(revision), "--physical")
        cluster.kill("router-0", "CONT")
        wait_for(lambda: "node decode-1 is cordoned" in cluster.log("router-0"), "the cordon that it slept over")
        wait_for(lambda: 'cluster settings: {"attempts":"5"}' in cluster.log("router-0"), "the setting that it slept over")
        for _ in range(3):
            answer = cluster.chat(QUESTION, temperature=0, max_tokens=4)
            assert answer.status == 200 and answer.headers["x-sluice-decode-node"] == "decode-0", answer.body


def test_filled_to_its_quota():
    """etcd takes no more writes: leases live on, requests are served, what needs a write is refused with etcd's words, the doctor says what to do."""
    with Cluster("etcd-full", "--etcd-args", "--quota-backend-bytes 1000000", "--lease", "3s") as cluster:
        filler, index = "x" * 100000, 0
        with Load(cluster) as load:
            try:
                while index < 100:
                    cluster.etcdctl("put", f"/filler/{index}", filler)
                    index += 1
            except AssertionError as error:
                assert "database space exceeded" in str(error), error
            assert 0 < index < 100, index
            refused = cluster.ctl("cordon", "decode-0")
            assert refused.returncode == 1 and "database space exceeded" in refused.stderr, refused.stderr
            doctor = cluster.ctl("doctor")
            assert doctor.returncode == 1 and "NOSPACE" in doctor.stdout and "disarm the alarm" in doctor.stdout, doctor.stdout
            load.more(8)
            assert serving(cluster)
            cluster.etcdctl("del", "--prefix", "/filler/")
            revision = json.loads(cluster.etcdctl("get", "x", "-w", "json"))["header"]["revision"]
            cluster.etcdctl("compact", str(revision), "--physical")
            cluster.etcdctl("defrag")
            cluster.etcdctl("alarm", "disarm")
            wait_for(lambda: cluster.ctl("cordon", "prefill-0").returncode == 0, "an action")
            load.more()
            assert cluster.ctl("uncordon", "prefill-0").returncode == 0
        cluster.wait_at_rest()


def test_the_leader_moves():
    """etcd's leader is moved while requests run and an operator acts: nothing fails, no lease is lost."""
    with Cluster("etcd-moves", "--etcd-nodes", 3, "--lease", "3s") as cluster:
        with Load(cluster) as load:
            for _ in range(3):
                first = wait_for(lambda: move_leader(cluster), "the leader to be moved")
                wait_for(lambda: leader(cluster) not in (None, first), "another leader")
                wait_for(lambda: cluster.ctl("cordon", "prefill-0").returncode == 0, "an action")
                wait_for(lambda: cluster.ctl("uncordon", "prefill-0").returncode == 0, "an action")
                load.more()
        assert "membership lost" not in cluster.log("decode-0") and cluster.metric("router-0", "sluice_request_migrations_total") == 0
        cluster.wait_at_rest()
