"""A cluster of real processes for the chaos tests: routers, nodes (stub engine or demo model), etcd, in network namespaces or on one host."""

import asyncio
import concurrent.futures
import ctypes
import errno
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

from control import Control

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from lib import LOCAL as SCRIPT  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(HERE)))
MODEL = os.path.join(ROOT, "models", "demo")
STUBS = os.environ.get("SLUICE_CHAOS_STUBS", os.path.join(ROOT, "build", "tests", "chaos"))
SLOWNESS = float(os.environ.get("SLUICE_TEST_SLOWNESS", "1"))
PATIENCE = 60.0 * SLOWNESS
THREADS = 4  # that look at nodes
SUBNET = "10.77.0.0/24"
# What the tests measure against. Short, so that a fault costs seconds; --help of the programs has the defaults.
DEADLINES = {"progress-timeout": "3s", "token-timeout": "4s", "admit-timeout": "3s", "place-timeout": "30s", "queue-timeout": "60s",
             "attempts": "16", "prefill-timeout": "60s", "keep-alive": "1s"}
NAMED = {"keep-alive": "0s"}  # heads never come before the first token, so that they name the nodes
LEASE = "2s"


def script_defaults():
    """All options of `deploy/local/cluster up`, as they are when none is given."""
    given, sys.argv = sys.argv, ["cluster", "up"]
    try:
        return SCRIPT.parse_arguments()
    finally:
        sys.argv = given


def can(*command):
    """Probes in a namespace of its own."""
    name = f"sluprobe{os.getpid()}"
    if os.geteuid() != 0 or subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode != 0:
        return False
    try:
        return subprocess.run(["ip", "netns", "exec", name, "sh", "-c", " ".join(command)], capture_output=True).returncode == 0
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


def can_netns():
    return can("true")


def can_loss():
    return can("nft add table inet t && nft 'add chain inet t c { type filter hook input priority 0; }' &&"
               " nft 'add rule inet t c numgen random mod 100 < 30 drop'")


def can_redirect():
    return can("nft add table ip t && nft 'add chain ip t c { type nat hook output priority -100; }' &&"
               " nft 'add rule ip t c meta mark != 7 tcp dport 1-65535 redirect to :999'")


async def together(*parts):
    """As gather, but the first that fails ends the others."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def can_reset():
    """Whether the kernel ends connections of others on request."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        server.accept()[0].close()
        subprocess.run(["ss", "-K", "-t", "sport", "=", f":{client.getsockname()[1]}"], capture_output=True)
        return client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNABORTED


class World:
    """Use as an async context manager."""

    def __init__(self, name, prefill=2, decode=3, routers=2, stub=True, netns=True, proxies=False, kv_memory="192MiB", node_args="",
                 prefill_args="", decode_args="", router_args="", etcd_nodes=1, deadlines=None):
        self.directory = os.path.join(ROOT, "build", "test-clusters", f"chaos-{name}-{os.getpid()}")
        self.stub, self.netns, self.proxies = stub, netns, {} if proxies else None
        self.processes, self.controls, self.expected_ends, self.fds = {}, {}, set(), {}
        self.own_namespace, self.threads, self.probe_at = None, None, 0.0
        self.deadlines = {**DEADLINES, **(deadlines or {})}
        limits = " ".join(f"--{key} {value}" for key, value in self.deadlines.items())
        self.options = script_defaults()
        vars(self.options).update(
            cluster="chaos", netns=netns, etcd_nodes=etcd_nodes, prefill=prefill, decode=decode, routers=routers, port=0, model=MODEL,
            model_name="", threads=1, kv_memory=kv_memory, lease=LEASE, env=["*:UCX_TLS=tcp,self"] if netns else [],
            node_args=f"--layer-group 2 --chunk-tokens 256 --drain-timeout 20s --etcd-timeout 60s {node_args} {os.environ.get('SLUICE_CHAOS_NODE_ARGS', '')}",
            prefill_args=prefill_args,
            decode_args=decode_args, router_args=f"{limits} --etcd-timeout 60s {router_args}")

    # ---- up and down

    async def __aenter__(self):
        os.makedirs(self.directory, exist_ok=True)
        os.environ["SLUICE_BIN"] = STUBS if self.stub else \
            os.environ.get("SLUICE_CHAOS_BIN", os.path.join(ROOT, "build", "bin"))
        self.state = SCRIPT.plan(self.directory, self.options)
        try:
            self.nodes = {node["name"]: node for node in self.state["nodes"]}
            self.threads = concurrent.futures.ThreadPoolExecutor(THREADS)
            if self.netns:
                self.enter(f"/run/netns/{self.state['netns']}-hub")
            for node in self.nodes.values():
                if self.proxies is not None and self.is_compute(node["name"]):
                    self.start_proxy(node)
                if self.stub and self.is_compute(node["name"]):
                    path = os.path.join(self.directory, node["name"] + ".control")
                    self.controls[node["name"]] = Control(path)
                    node["env"]["SLUICE_CHAOS"] = path
                self.start(node["name"])
                if node["role"] == "etcd":
                    await self.until(lambda: self.http(node["control"], "/health"), "etcd")
            await self.until(self.all_usable, "all nodes to be used")
        except BaseException:
            self.tear_down()
            raise
        return self

    async def __aexit__(self, kind, *unused):
        if kind is not None:
            self.tell_logs()
        self.tear_down()

    async def in_thread(self, function, *arguments):
        """In one of this world's own: a thread stays in the network namespace in which it began."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, function, *arguments)

    def enter(self, path):
        """This thread's sockets, and the programs it starts, from now on live there."""
        if self.own_namespace is None:
            self.own_namespace = os.open("/proc/self/ns/net", os.O_RDONLY)
        descriptor = os.open(path, os.O_RDONLY)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(descriptor, 0x40000000) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        os.close(descriptor)

    def tear_down(self):
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        deadline = time.monotonic() + 5
        for process in self.processes.values():
            try:
                process.wait(max(0.05, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.threads.shutdown()
        for proxy in (self.proxies or {}).values():
            proxy.kill()
            proxy.wait()
        if self.own_namespace is not None:
            self.enter(f"/proc/self/fd/{self.own_namespace}")
            os.close(self.own_namespace)
            self.own_namespace = None
        SCRIPT.namespaces_down(self.state)

    def tell_logs(self):
        for name, node in self.nodes.items():
            lines = self.log(name).splitlines()[-12:]
            print("\n".join([f"--- {name} ({node['log']})"] + lines), file=sys.stderr)

    # ---- processes

    def is_compute(self, name):
        return self.nodes[name]["role"] in ("prefill", "decode")

    def names(self, *roles):
        return [name for name, node in self.nodes.items() if node["role"] in roles]

    def start(self, name):
        node = self.nodes[name]
        if name in self.controls:
            self.controls[name].reset()
        with open(node["log"], "ab") as log:
            self.processes[name] = subprocess.Popen(node["argv"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT,
                                                    start_new_session=True, env={**os.environ, **node["env"]})
        self.expected_ends.discard(name)

    def pid(self, name):
        return self.processes[name].pid

    def alive(self, name):
        return self.processes[name].poll() is None

    def send(self, name, number):
        self.processes[name].send_signal(number)

    async def kill(self, name):
        self.expected_ends.add(name)
        self.send(name, signal.SIGKILL)
        await self.until(lambda: not self.alive(name), f"the end of {name}")

    def check_processes(self):
        """Nobody ended that was not ended."""
        for name in self.processes:
            if not self.alive(name) and name not in self.expected_ends:
                raise AssertionError(f"{name} ended with {self.processes[name].returncode}:\n{SCRIPT.tail(self.nodes[name]['log'], 20)}")

    def log(self, name):
        with open(self.nodes[name]["log"], errors="replace") as file:
            return file.read()

    # ---- links

    def namespace(self, name):
        return self.nodes[name]["namespace"]

    def address(self, name):
        return self.nodes[name]["host"]

    def nft(self, name, *commands):
        for command in commands:
            subprocess.run(["ip", "netns", "exec", self.namespace(name), "nft", command], check=True, capture_output=True)

    def link(self, name, up):
        SCRIPT.ip("-n", self.namespace(name), "link", "set", "eth0", "up" if up else "down")

    def drop(self, name, rules):
        """rules: {"input" or "output": what is dropped of all that comes or goes by its link}."""
        self.nft(name, "add table inet chaos", *(
            f"add chain inet chaos {hook} {{ type filter hook {hook} priority 0; }}" for hook in rules), *(
            f"add rule inet chaos {hook} {'i' if hook == 'input' else 'o'}ifname eth0 {what} drop" for hook, what in rules.items()))

    def undrop(self, name):
        self.nft(name, "delete table inet chaos")

    def reset(self, name):
        """Ends all TCP connections of routers to a node's control port, as a box between them would."""
        port = self.nodes[name]["control"].rpartition(":")[2]
        subprocess.run(["ss", "-K", "-t", "dport", "=", f":{port}"], capture_output=True)

    def start_proxy(self, node):
        command = ["ip", "netns", "exec", node["namespace"], sys.executable, os.path.join(HERE, "proxy.py")]
        proxy = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
        self.proxies[node["name"]] = proxy
        assert proxy.stdout.readline() == "ready\n"
        self.nft(node["name"], "add table ip proxy", "add chain ip proxy out { type nat hook output priority -100; }",
                 "add chain ip proxy in { type nat hook prerouting priority -100; }",
                 f"add rule ip proxy out meta mark != 7 ip daddr {SUBNET} ip daddr != {node['host']} tcp dport 1-65535 redirect to :999",
                 f"add rule ip proxy in iifname eth0 ip saddr {self.state['nodes'][0]['host']} tcp dport 1-65535 redirect to :999")

    def weather(self, name, command):
        self.proxies[name].stdin.write(command + "\n")
        self.proxies[name].stdin.flush()
        assert self.proxies[name].stdout.readline() == "ok\n"

    def delay(self, name, seconds):
        """Both ways, to and from all."""
        self.weather(name, f"delay {seconds}")
        for other in self.proxies:
            if other != name:
                self.weather(other, f"delay {seconds} {self.address(name)}")

    # ---- looking

    async def until(self, condition, what, seconds=None):
        deadline = time.monotonic() + (seconds or PATIENCE)
        while True:
            value = condition()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return value
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {seconds or PATIENCE:.0f} s for {what}")
            await asyncio.sleep(0.02)

    async def http(self, address, path):
        """The body of an answer, "" when nobody answers."""
        return await self.in_thread(self._http, address, path)

    @staticmethod
    def _http(address, path):
        try:
            with urllib.request.urlopen(f"http://{address}{path}", timeout=2) as answer:
                return answer.read().decode()
        except (OSError, urllib.error.URLError):
            return ""

    async def metrics(self, name):
        values = {}
        for line in (await self.http(self.nodes[name]["metrics"], "/metrics")).splitlines():
            if line and not line.startswith("#"):
                key, _, value = line.rpartition(" ")
                values[key] = float(value)
        return values

    async def usable(self, *but):
        """Every living router uses every node but those."""
        for router in self.names("router"):
            if router in but:
                continue
            values = await self.metrics(router)
            for role in ("prefill", "decode"):
                wanted = sum(name not in but for name in self.names(role))
                if values.get(f'sluice_usable_nodes{{role="{role}"}}', 0) < wanted:
                    return False
        return True

    async def all_usable(self):
        self.check_processes()
        if await self.usable():
            return True
        await self.in_thread(self.probe)
        return False

    def probe(self):
        """A router tries a node that failed by a request, so that someone must ask."""
        if time.monotonic() < self.probe_at:
            return
        self.probe_at = time.monotonic() + 0.5
        body = json.dumps({"model": "demo", "prompt": [300 + byte for byte in os.urandom(100)], "max_tokens": 1})
        for name in self.names("router"):
            request = urllib.request.Request(f"http://{self.nodes[name]['http']}/v1/completions", body.encode(),
                                             {"Content-Type": "application/json"})
            try:
                urllib.request.urlopen(request, timeout=10).read()
            except (OSError, http.client.HTTPException):
                pass  # whoever waits for the nodes tells

    def ctl(self, *arguments):
        return subprocess.run([os.path.join(os.environ["SLUICE_BIN"], "sluicectl"), "--etcd", ",".join(self.state["etcd"]), "--cluster",
                               "chaos", *arguments], capture_output=True, text=True, timeout=PATIENCE)

    def count_fds(self):
        return {name: len(os.listdir(f"/proc/{self.pid(name)}/fd")) for name in self.processes if self.alive(name) and name != "etcd-0"}

    async def busy(self):
        problems = []
        for name in self.names("prefill", "decode"):
            values = await self.metrics(name)
            for key in ('sluice_kv_pages{state="used"}', 'sluice_kv_pages{state="transit"}', 'sluice_kv_pages{state="promised"}',
                        "sluice_running_requests", "sluice_waiting_requests", 'sluice_kv_open{kind="sends"}',
                        'sluice_kv_open{kind="recvs"}', 'sluice_kv_open{kind="requests"}'):
                if values.get(key) != 0:
                    problems.append(f"{name} {key} {values.get(key)}")
        return problems

    async def at_rest(self):
        """All is healed and no request is under way: then no page, transfer or request is left anywhere, and nobody died unasked."""
        await self.until(self.all_usable, "all nodes to be used again")
        last = []

        async def rest():
            last[:] = await self.busy()
            return not last
        try:
            await self.until(rest, "rest", 40 * SLOWNESS)
        except AssertionError:
            raise AssertionError(f"not at rest: {last}")
        await self.check_ledger()
        self.check_processes()

    async def check_ledger(self):
        """Who owns each page: nobody. etcd may still be busy after what befell it."""
        answer = {}

        async def asked():
            result = await self.in_thread(self.ctl, "check", "--ledger", "--json", "--at-rest")
            answer.update(text=result.stderr, found=json.loads(result.stdout) if result.stdout else None)
            return answer["found"] and {node["node"] for node in answer["found"]["nodes"]} >= set(self.names("prefill", "decode"))
        await self.until(asked, "all nodes' ledgers")
        assert not answer["found"]["violations"], answer["found"]["violations"]

    def check_fds(self, before, slack):
        """A connection more to each peer may have been made since; no fault may have cost one."""
        now = self.count_fds()
        grown = {name: (before[name], count) for name, count in now.items() if name in before and count > before[name] + slack}
        assert not grown, f"file descriptors (before, now): {grown}"
        return now
