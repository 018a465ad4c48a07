"""Every process of a cluster restarted, one after the other, under load, as an upgrade does (docs/OPERATIONS.md): nothing fails."""

import copy
import http.client
import threading

from lib import REFERENCE, Cluster, wait_for

QUESTION = "Tell me a story about a bear named Wendy."
TOKENS = 60
DELAY = 7.0  # the routers' --shutdown-delay: the test asks within it


def through(cluster, router):
    """The cluster by way of one router, as it was started last."""
    view = copy.copy(cluster)
    view.state = {**cluster.state, "http": cluster.node(router)["http"]}
    return view


class Balancer:
    """Clients behind a load balancer: each request goes to the next router whose /ready says yes; who cannot connect there goes on."""

    def __init__(self, cluster, clients):
        self.cluster, self.expected = cluster, REFERENCE.run(["--chat", "--max-tokens", str(TOKENS), "--temperature", "0", QUESTION])["ids"]
        self.ended, self.failures, self.right, self.used = threading.Event(), [], 0, set()
        self.threads = [threading.Thread(target=self.client, args=(i,)) for i in range(clients)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *unused):
        self.ended.set()
        for thread in self.threads:
            thread.join()

    def client(self, turn):
        while not self.ended.is_set() and not self.failures:
            turn += 1
            router = f"router-{turn % 2}"
            try:
                self.ask(router)
            except Exception as error:
                self.failures.append(f"{router}: {error!r}")

    def ask(self, router):
        view = through(self.cluster, router)
        try:
            ready = view.request("GET", "/ready")[0] == 200
        except (OSError, http.client.HTTPException):
            ready = False
        if not ready:
            return
        answer = view.chat(QUESTION, temperature=0, max_tokens=TOKENS, stream=True)
        assert answer.done and answer.token_ids == self.expected, (answer.status, answer.error, answer.token_ids)
        self.used |= {router, answer.headers["x-sluice-decode-node"]}
        self.right += 1

    def goes_on(self, what, *through_whom):
        """Until the clients have had answers, by those among others."""
        before, self.used = self.right, set()
        wait_for(lambda: self.failures or (self.right >= before + 3 and self.used >= set(through_whom)), f"answers {what}")
        assert not self.failures, (what, self.failures)


def restart_node(cluster, name):
    drained = cluster.ctl("drain", name)
    assert drained.returncode == 0 and "has left" in drained.stdout, drained
    wait_for(lambda: not cluster.alive(name), f"the end of {name}")
    cluster.start(name)


def restart_router(cluster, name):
    router = through(cluster, name)
    cluster.kill(name, "TERM")
    wait_for(lambda: router.request("GET", "/ready")[0] == 503, f"{name} to say that it goes")
    late = router.chat(QUESTION, temperature=0, max_tokens=4)
    assert late.status == 200 and late.headers["connection"] == "close", (late.status, late.headers)
    wait_for(lambda: not cluster.alive(name), f"the end of {name}")
    cluster.start(name)


def test_all_restarted_under_load():
    """Nodes by drain, routers by SIGTERM with time for the load balancer: each answer is that of one process, none fails."""
    with Cluster("rolling", "--prefill", 2, "--decode", 2, "--routers", 2, "--router-args", f"--shutdown-delay {DELAY}s") as cluster:
        with Balancer(cluster, 3) as clients:
            clients.goes_on("at first", "router-0", "router-1")
            for name in ("prefill-0", "prefill-1", "decode-0", "decode-1"):
                restart_node(cluster, name)
                clients.goes_on(f"by the new {name}", *[name] if "decode" in name else [])
            for name in ("router-0", "router-1"):
                restart_router(cluster, name)
                clients.goes_on(f"by the new {name}", name)
        wait_for(lambda: (lambda text: "0 warnings, 0 failures" in text and "routers          2 answer" in text)(cluster.ctl("doctor").stdout), "all to be well")
        cluster.wait_at_rest()


def test_no_queue_at_a_router_that_ends():
    """Its last stream may take long: who connects meanwhile is refused at once, and does not wait for its end."""
    with Cluster("rolling-refuse", "--env", "*:SLUICE_FAULTS=decode.step=slow=150") as cluster:
        refused = []

        def is_refused():
            try:
                cluster.connection(5).connect()
            except ConnectionRefusedError:
                return True
            return False

        def on_chunk(answer):
            if len(answer.token_ids) >= 3 and not refused:
                cluster.kill("router-0", "TERM")
                wait_for(lambda: "stopping: 1 requests" in cluster.log("router-0"), "the router to stop")
                refused.append(wait_for(is_refused, "no more connections") and cluster.alive("router-0"))

        answer = cluster.chat(QUESTION, on_chunk=on_chunk, temperature=0, max_tokens=TOKENS, stream=True)
        assert refused == [True] and answer.done and len(answer.token_ids) == TOKENS, (refused, answer.error)
        wait_for(lambda: not cluster.alive("router-0"), "its end")
