"""etcd loses leases, its leader, its quorum: serving goes on, no request fails."""

import json
import subprocess
import threading

from lib import REFERENCE, Cluster, wait_for

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
    leases = cluster.etcdctl("lease", "list").split()
    for lease in leases:
        if len(lease) >= 15 and all(c in "0123456789abcdef" for c in lease):
            cluster.etcdctl("lease", "revoke", lease)


def test_every_lease_is_lost_at_once():
    """The view freezes, all go on serving, each takes a new lease."""
    with Cluster("leases", "--decode", 2) as cluster:
        before = {name: record["incarnation"] for name, record in cluster.members().items()}
        with Load(cluster) as load:
            revoke_all(cluster)
            wait_for(lambda: "members lost their leases at once" in cluster.log("router-0"), "the frozen view")
            load.more()
            wait_for(lambda: serving(cluster) and "most members have their leases" in cluster.log("router-0"), "new leases", 30)
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
            wait_for(lambda: cluster.metrics("router-0").get("sluice_etcd_connected") == 0, "the router to notice", 30)
            load.more()
            cluster.start(first)
            cluster.start(second)
            wait_for(lambda: cluster.metrics("router-0").get("sluice_etcd_connected") == 1, "etcd again", 30)
            wait_for(lambda: serving(cluster), "the members' records", 30)
            load.more()
        assert cluster.metric("router-0", "sluice_request_migrations_total") == 0
        cluster.wait_at_rest()
