"""Wall clocks that are hours off: leases and deadlines are of monotonic time; only certificates are judged by the time of day."""

import os
import subprocess
import time

from lib import BIN, REFERENCE, ROOT, Cluster, Skip, wait_for

QUESTION = "Who are you?"
SKEW = os.path.join(ROOT, "build", "tests", "cluster", "skew.so")
HOUR, YEAR = 3600, 365 * 86400
LEASE = 2.0


def clock(seconds):
    if "build/bin" not in BIN:
        raise Skip("a sanitizer wants to be loaded first")
    return {"LD_PRELOAD": SKEW, "SLUICE_SKEW_S": str(seconds)}


def off(node, seconds):
    """The options of a cluster whose node's clock is off by so much."""
    return [word for key, value in clock(seconds).items() for word in ("--env", f"{node}:{key}={value}")]


def hours_off(cluster, name):
    """By the times in its log."""
    text = cluster.log(name).splitlines()[0].split(".")[0]
    return round((time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S")) - time.mktime(time.gmtime())) / HOUR)


def test_hours_off():
    """Routers and nodes hours behind and ahead: members for longer than a lease, the answers of one process, a stopped node given up in time."""
    skews = {"router-0": -5, "router-1": 30, "prefill-0": 9, "decode-0": -26, "decode-1": 3}
    options = [word for name, hours in skews.items() for word in off(name, hours * HOUR)]
    options += ["--env", "decode-0:SLUICE_FAULTS=decode.step=slow=20", "--env", "decode-1:SLUICE_FAULTS=decode.step=slow=20"]  # so that one can be stopped amid an answer
    with Cluster("skew", "--routers", 2, "--decode", 2, "--lease", f"{LEASE}s", "--router-args", "--token-timeout 4s --attach-timeout 1s", *options) as cluster:
        assert {name: hours_off(cluster, name) for name in skews} == skews
        expected = REFERENCE.run(["--chat", "--max-tokens", "40", "--temperature", "0", QUESTION])["ids"]
        used, until = set(), time.monotonic() + 3 * LEASE
        while time.monotonic() < until or len(used) < 2:
            answer = cluster.chat(QUESTION, temperature=0, max_tokens=40, stream=True)
            assert answer.done and answer.token_ids == expected, (answer.status, answer.error)
            used.add(answer.headers["x-sluice-decode-node"])
        for name in skews:
            for word in ("lost", "away", "suspect", "no more"):
                assert word not in cluster.log(name), (name, word)
        leader = cluster.ctl_json("scale", "plan")["leader"]
        assert sum("this router leads" in cluster.log(name) for name in ("router-0", "router-1")) == 1 and leader, leader

        def stop_early(answer):
            node = answer.headers["x-sluice-decode-node"]
            if len(answer.token_ids) > 3 and not stopped:
                cluster.kill(node, "STOP")
                stopped.append(node)
        stopped = []
        answer = cluster.chat(QUESTION, on_chunk=stop_early, temperature=0, max_tokens=40, stream=True)
        assert answer.done and answer.token_ids == expected and stopped, (answer.status, answer.error, stopped)
        assert "goes on at token" in cluster.log("router-0")
        wait_for(lambda: stopped[0] not in cluster.members(), "the stopped node's lease to end")
        cluster.kill(stopped[0], "CONT")
        wait_for(lambda: cluster.members().get(stopped[0], {}).get("state") == "ready", "its return")
        cluster.wait_at_rest()


def test_certificates_by_the_wall_clock():
    """Whose clock says that a certificate has ended, or does not begin yet, says so: at its own start, and of others."""
    with Cluster("skew-trust", "--tls") as cluster:
        for seconds, text in ((2 * YEAR, "expired on"), (-YEAR, "is this clock right?")):
            wrong = subprocess.run(cluster.node("decode-0")["argv"], env={**os.environ, **clock(seconds)}, capture_output=True, text=True, timeout=60)
            assert wrong.returncode == 1 and text in wrong.stderr and "decode-0.pem" in wrong.stderr, wrong.stderr
        pki = os.path.join(cluster.directory, "pki")
        for ending in ("pem", "key"):
            os.remove(f"{pki}/decode-0.{ending}")
        again = subprocess.run([os.path.join(BIN, "sluicectl"), "pki", "issue", "node", "decode-0", "--dir", pki, "--valid", "2h"], capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
        cluster.kill("decode-0", "TERM")
        wait_for(lambda: not cluster.alive("decode-0"), "the node's end")
        cluster.start("decode-0")
        wait_for(lambda: cluster.ctl("node", "decode-0").returncode == 0, "the node with a certificate of two hours")
        late = subprocess.run([os.path.join(BIN, "sluicectl"), "--etcd", ",".join(cluster.state["etcd"]), "--cluster", cluster.state["cluster"], *cluster.trust(),
                               "node", "decode-0"], env={**os.environ, **clock(3 * HOUR)}, capture_output=True, text=True, timeout=60)
        assert late.returncode == 1 and "its certificate is foreign or expired" in late.stderr, late
        assert cluster.chat(QUESTION, temperature=0, max_tokens=4).status == 200
