"""Links between some of the processes fail, the others stand (network namespaces, nftables): exact answers, nothing left behind."""

import os
import shutil
import subprocess

from lib import Cluster, Skip, has_netns, needle_prompt, wait_for
from test_faults import MIGRATIONS, STORY, in_background, reference_chat


class Links:
    """Packets that a node's namespace drops."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.touched = set()

    def nft(self, namespace, *arguments):
        result = subprocess.run(["ip", "netns", "exec", namespace, "nft", *arguments], capture_output=True, text=True)
        if result.returncode != 0:
            raise Skip(f"nftables: {result.stderr.strip()}")

    def drop(self, name, *match):
        """What comes in at the node and matches."""
        namespace = self.cluster.node(name)["namespace"]
        if namespace not in self.touched:
            self.nft(namespace, "add table inet cut")
            self.nft(namespace, "add chain inet cut in { type filter hook input priority 0; }")
            self.touched.add(namespace)
        self.nft(namespace, "add rule inet cut in " + " ".join(match) + " drop")

    def heal(self):
        for namespace in self.touched:
            self.nft(namespace, "delete table inet cut")
        self.touched.clear()


def host(cluster, name):
    return cluster.node(name)["control"].rpartition(":")[0]


def cluster_of(name, *arguments):
    if os.geteuid() != 0 or not has_netns() or not shutil.which("nft"):
        raise Skip("needs root, network namespaces and nftables")
    return Cluster(name, "--netns", "--env", "*:UCX_TLS=tcp,self", *arguments)


def expected(prompt, tokens):
    return reference_chat(prompt, tokens, "--temperature", "0", "--ignore-eos")["ids"]


def test_between_prefill_and_decode_node_only():
    """The router sees both well; the cache does not arrive: another prefill node has to do it, and the first is left alone."""
    with cluster_of("cut-pd", "--prefill", 2, "--router-args", "--progress-timeout 8s", "--env",
                    "prefill-0:SLUICE_FAULTS=prefill.group=hold@2", "--node-args", "--chunk-tokens 256") as cluster:
        links = Links(cluster)
        prompt = needle_prompt(600)
        result = in_background(lambda: cluster.chat(prompt, temperature=0, stream=True, max_tokens=20, ignore_eos=True))
        wait_for(lambda: "fault prefill.group: hold" in cluster.log("prefill-0"), "the prefill to be under way")
        links.drop("decode-0", "ip saddr", host(cluster, "prefill-0"))
        links.drop("prefill-0", "ip saddr", host(cluster, "decode-0"))
        cluster.kill("prefill-0", "USR2")  # it goes on, and nobody hears of it
        answer = result()
        assert answer.done and answer.token_ids == expected(prompt, 20), answer.error
        assert cluster.metric("router-0", MIGRATIONS) == 1
        links.heal()
        cluster.wait_at_rest()


def full_one_way_to_the_router():
    """What the decode node says does not arrive; what it is told does. Another one goes on."""
    with cluster_of("cut-way", "--decode", 2, "--env", "*:SLUICE_FAULTS=decode.step=slow=20") as cluster:
        links = Links(cluster)
        cut = []

        def on_chunk(answer):
            if len(answer.token_ids) >= 10 and not cut:
                cut.append(answer.headers["x-sluice-decode-node"])
                links.drop("router-0", "ip saddr", host(cluster, cut[0]))
        answer = cluster.chat(STORY, on_chunk, temperature=0, stream=True, max_tokens=400, ignore_eos=True)
        assert answer.done and answer.token_ids == expected(STORY, 400), answer.error
        assert cluster.metric("router-0", MIGRATIONS) == 1
        links.heal()
        wait_for(lambda: cluster.metrics("router-0").get('sluice_usable_nodes{role="decode"}') == 2, "both decode nodes")
        cluster.wait_at_rest()


def test_between_a_node_and_etcd_only():
    """Its lease is lost, its streams stand: it serves on as the last resort, and is a member again afterwards."""
    with cluster_of("cut-etcd", "--lease", "2s") as cluster:
        links = Links(cluster)
        for etcd in cluster.nodes("etcd"):
            links.drop("decode-0", "tcp sport", etcd["control"].rpartition(":")[2])
        wait_for(lambda: "decode-0" not in cluster.members(), "the lease's end")
        for _ in range(3):
            answer = cluster.chat(STORY, temperature=0, stream=True, max_tokens=20, ignore_eos=True)
            assert answer.done and answer.token_ids == expected(STORY, 20), answer.error
        links.heal()
        wait_for(lambda: cluster.members().get("decode-0", {}).get("state") == "ready", "the member again")
        assert cluster.metric("router-0", MIGRATIONS) == 0
        cluster.wait_at_rest()


def full_prefill_node_stopped_with_fetches_open():
    """SIGSTOP inside a prefill; another one does it; SIGCONT: what the first one still says moves nothing."""
    with Cluster("stop-p", "--prefill", 2, "--router-args", "--progress-timeout 2s", "--env",
                 "prefill-0:SLUICE_FAULTS=prefill.group=slow=100", "--node-args", "--chunk-tokens 128") as cluster:
        prompt = needle_prompt(900)
        result = in_background(lambda: cluster.chat(prompt, temperature=0, stream=True, max_tokens=20, ignore_eos=True))
        wait_for(lambda: "fault prefill.group: slow at hit 3" in cluster.log("prefill-0"), "some groups")
        cluster.kill("prefill-0", "STOP")
        answer = result()
        assert answer.done and answer.token_ids == expected(prompt, 20), answer.error
        cluster.kill("prefill-0", "CONT")
        again = cluster.chat(prompt, temperature=0, stream=True, max_tokens=20, ignore_eos=True)
        assert again.done and again.token_ids == answer.token_ids, again.error
        cluster.wait_at_rest()
