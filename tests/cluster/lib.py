"""What the cluster tests share: a cluster of real processes, an HTTP client, waiting for conditions, and the reference (sluice-run)."""

import ctypes
import http.client
import importlib.machinery
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.environ.get("SLUICE_BIN", os.path.join(ROOT, "build", "bin"))
MODEL = os.path.join(ROOT, "models", "demo")
SHARED = os.path.join(os.path.dirname(ROOT), "shared")
SCRIPT = os.path.join(ROOT, "deploy", "local", "cluster")
PATIENCE = 60.0 * float(os.environ.get("SLUICE_TEST_SLOWNESS", "1"))  # sanitizers are slower; a limit, never a verdict on speed


# For other backends: `--backend cuda ...` for the one process that is the reference; SLUICE_NODE_ARGS (deploy/local/cluster) for the nodes.
RUN_ARGS = os.environ.get("SLUICE_RUN_ARGS", "").split()


def load_script():
    """The script as a module: a look at what runs costs no interpreter's start."""
    loader = importlib.machinery.SourceFileLoader("cluster_script", SCRIPT)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("cluster_script", loader))
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # beside the script
    loader.exec_module(module)
    sys.dont_write_bytecode = written
    return module


LOCAL = load_script()


class Skip(Exception):
    """This machine cannot run the test; the text says what is missing."""


def wait_for(condition, what, seconds=None):
    """Polls until the condition gives something true, and returns it. A look that starts a program is taken less often: the cores are the nodes'."""
    deadline = time.monotonic() + (seconds or PATIENCE)
    while True:
        began = time.monotonic()
        value = condition()
        if value:
            return value
        now = time.monotonic()
        if now > deadline:
            raise AssertionError(f"waited {seconds or PATIENCE:.0f} s for {what}")
        time.sleep(min(max(0.02, 2 * (now - began)), 0.2))


def in_namespace(name, function):
    """Runs function in a thread whose sockets live in the network namespace."""
    if name is None:
        return function()
    outcome = {}

    def body():
        try:
            descriptor = os.open(f"/run/netns/{name}", os.O_RDONLY)
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(descriptor, 0x40000000) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            os.close(descriptor)
            outcome["value"] = function()
        except BaseException as error:  # handed to the caller's thread
            outcome["error"] = error

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]


class Answer:
    """One completion: what the client saw."""

    def __init__(self):
        self.status = None
        self.headers = {}
        self.body = None
        self.chunks = []
        self.error = None
        self.done = False  # the stream ended with [DONE]
        self.content = ""
        self.reasoning = ""
        self.text = ""
        self.token_ids = []
        self.tool_calls = []
        self.finish_reason = None
        self.usage = None

    def add_chunk(self, chunk):
        self.chunks.append(chunk)
        if "error" in chunk:
            self.error = chunk["error"]
            return
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices", []):
            delta = choice.get("delta") or {}
            self.content += delta.get("content") or ""
            self.reasoning += delta.get("reasoning_content") or ""
            self.text += choice.get("text") or ""
            self.token_ids += choice.get("token_ids") or []
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            for call in delta.get("tool_calls") or []:
                while len(self.tool_calls) <= call["index"]:
                    self.tool_calls.append({"id": None, "function": {"name": "", "arguments": ""}})
                target = self.tool_calls[call["index"]]
                target["id"] = call.get("id") or target["id"]
                function = call.get("function") or {}
                target["function"]["name"] += function.get("name") or ""
                target["function"]["arguments"] += function.get("arguments") or ""

    def add_body(self, body):
        self.body = body
        self.error = body.get("error")
        self.usage = body.get("usage")
        for choice in body.get("choices", []):
            message = choice.get("message") or {}
            self.content = message.get("content") or ""
            self.reasoning = message.get("reasoning_content") or ""
            self.tool_calls = message.get("tool_calls") or []
            self.text = choice.get("text") or ""
            self.token_ids = choice.get("token_ids") or []
            self.finish_reason = choice.get("finish_reason")


class Cluster:
    """`deploy/local/cluster` in a directory of its own. Use as a context manager: down at the end, also after a failure."""

    def __init__(self, name, *arguments):
        self.directory = os.path.join(ROOT, "build", "test-clusters", name)
        # A stream's head never comes before the first token, however slow the machine, so that it names the nodes; --keep-alive counts before it.
        named = [word for i in range(3) for word in ("--env", f"router-{i}:SLUICE_KEEP_ALIVE=0s")]
        self.arguments = named + [str(argument) for argument in arguments]
        self.state = None
        self.patience = PATIENCE  # of an HTTP client, between two bytes

    def script(self, command, *arguments, check=True):
        result = subprocess.run([sys.executable, SCRIPT, command, "--dir", self.directory, *arguments], capture_output=True,
                                text=True, cwd=ROOT)
        if check and result.returncode != 0:
            raise AssertionError(f"cluster {command}: {result.stderr.strip()}")
        return result

    def refresh(self):
        """What `status --json` says."""
        self.state = LOCAL.status_of(self.directory)
        return self.state

    def __enter__(self):
        os.makedirs(os.path.dirname(self.directory), exist_ok=True)
        self.script("down", check=False)
        self.script("up", "--port", "0", "--quiet", *self.arguments)
        self.refresh()
        return self

    def __exit__(self, *unused):
        if unused[0] is not None and unused[0] is not Skip:
            for node in self.state["nodes"]:
                lines = self.log(node["name"]).splitlines()[-12:]
                print("\n".join([f"--- {node['name']}"] + lines), file=sys.stderr)
        result = self.script("down", check=False)
        if result.returncode != 0:
            print(result.stderr, file=sys.stderr)
        if unused[0] is None:
            self.check_sanitizers()

    def check_sanitizers(self):
        """Programs built with a sanitizer tell what they found in their logs."""
        for node in self.state["nodes"]:
            text = self.log(node["name"])
            for mark in ("ERROR: AddressSanitizer", "ERROR: LeakSanitizer", "WARNING: ThreadSanitizer", "runtime error:",
                         "assertion failed"):
                if mark in text:
                    at = text.index(mark)
                    raise AssertionError(f"{node['name']}: {text[max(0, at - 200):at + 4000]}")

    def node(self, name):
        return next(node for node in self.state["nodes"] if node["name"] == name)

    def nodes(self, role):
        return [node for node in self.state["nodes"] if node["role"] == role]

    def log(self, name):
        with open(self.node(name)["log"], errors="replace") as file:
            return file.read()

    def kill(self, name, number="KILL"):
        """At once: a script that must start first comes too late for a request that is nearly done."""
        os.kill(self.node(name)["pid"], getattr(signal, f"SIG{number}"))

    def start(self, name):
        """Its next life; a router is listening then."""
        wait_for(lambda: not self.alive(name), f"the end of {name}")
        self.script("start", name)
        self.refresh()
        if self.node(name)["role"] == "router":
            wait_for(lambda: in_namespace(self.node(name)["namespace"], lambda: self.listens(name)), f"{name} to listen")

    def listens(self, name):
        host, _, port = self.node(name)["http"].rpartition(":")
        try:
            socket.create_connection((host, int(port)), self.patience).close()
            return True
        except ConnectionRefusedError:
            return False

    def alive(self, name):
        return next(node for node in self.refresh()["nodes"] if node["name"] == name)["alive"]

    # ---- HTTP ----

    def connection(self, timeout=None):
        return http.client.HTTPConnection(self.state["http"], timeout=timeout or self.patience)

    def request(self, method, path, body=None, headers=None):
        """(status, headers, body bytes)."""
        def run():
            connection = self.connection()
            data = body if body is None or isinstance(body, (bytes, str)) else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            result = response.status, dict(response.getheaders()), response.read()
            connection.close()
            return result
        return in_namespace(self.node("router-0")["namespace"], run)

    def complete(self, path, body, on_chunk=None):
        """Sends a completion request, streamed or not, and collects the answer. on_chunk(answer) may raise StopIteration to hang up."""
        return in_namespace(self.node("router-0")["namespace"], lambda: self._complete(path, body, on_chunk))

    def _complete(self, path, body, on_chunk):
        answer = Answer()
        connection = self.connection()
        connection.request("POST", path, json.dumps({"return_token_ids": True, **body}), {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer.status, answer.headers = response.status, {k.lower(): v for k, v in response.getheaders()}
        if not answer.headers.get("content-type", "").startswith("text/event-stream"):
            answer.add_body(json.loads(response.read()))
            connection.close()
            return answer
        try:
            for line in response:
                line = line.strip()
                if line == b"data: [DONE]":
                    answer.done = True
                elif line.startswith(b"data: "):
                    answer.add_chunk(json.loads(line[6:]))
                    if on_chunk:
                        on_chunk(answer)
        except StopIteration:
            pass
        connection.close()
        return answer

    def chat(self, messages, on_chunk=None, **fields):
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return self.complete("/v1/chat/completions", {"model": "demo", "messages": messages, **fields}, on_chunk)

    def completion(self, prompt, on_chunk=None, **fields):
        return self.complete("/v1/completions", {"model": "demo", "prompt": prompt, **fields}, on_chunk)

    # ---- metrics ----

    def metrics(self, name):
        """{'name{labels}': value} of a node; {} when it does not answer."""
        node = self.node(name)

        def run():
            try:
                connection = http.client.HTTPConnection(node["metrics"], timeout=5)
                connection.request("GET", "/metrics")
                return connection.getresponse().read().decode()
            except (OSError, http.client.HTTPException):  # it may end amid its answer
                return ""
        text = in_namespace(node["namespace"], run)
        values = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                key, _, value = line.rpartition(" ")
                values[key] = float(value)
        return values

    def metric(self, name, metric):
        """Sum over the labels of one metric."""
        return sum(value for key, value in self.metrics(name).items() if key == metric or key.startswith(metric + "{"))

    def wait_at_rest(self):
        """Every living node holds nothing: no request, no transfer, every page free."""
        def busy():
            problems = []
            for node in self.refresh()["nodes"]:
                if node["role"] not in ("prefill", "decode") or not node["alive"]:
                    continue
                values = self.metrics(node["name"])
                for key in ('sluice_kv_pages{state="used"}', 'sluice_kv_pages{state="transit"}', "sluice_running_requests", "sluice_waiting_requests",
                            'sluice_kv_open{kind="sends"}', 'sluice_kv_open{kind="recvs"}', 'sluice_kv_open{kind="requests"}'):
                    if values.get(key) != 0:
                        problems.append(f"{node['name']} {key} {values.get(key)}")
            return problems
        last = []

        def rest():
            last[:] = busy()
            return not last
        try:
            wait_for(rest, "a cluster at rest", PATIENCE / 3)
        except AssertionError:
            raise AssertionError(f"not at rest: {last}")
        self.check_ledger("--at-rest")

    # ---- sluicectl ----

    def trust(self, name=None):
        """The options by which sluicectl shows the certificate of that name (the operator's own by default)."""
        options, tls = [], self.state.get("tls")
        for prefix in ("tls", "etcd") if tls else ():
            for what, path in tls.items():
                path = path.replace("/operator.", f"/{name}.") if name and prefix == "tls" else path
                options += [f"--{prefix}-{what}", path]
        if self.state.get("etcd_password_file"):
            options += ["--etcd-user", "sluice", "--etcd-password-file", self.state["etcd_password_file"]]
        return options

    def ctl(self, *arguments, trust=None):
        """Runs sluicectl on this cluster: the finished process."""
        namespace = self.node("router-0")["namespace"]
        enter = ["ip", "netns", "exec", namespace] if namespace else []
        return subprocess.run([*enter, os.path.join(BIN, "sluicectl"), "--etcd", ",".join(self.state["etcd"]), "--cluster",
                               self.state["cluster"], *(self.trust() if trust is None else trust), *arguments], capture_output=True, text=True, timeout=PATIENCE)

    def ctl_json(self, *arguments, code=0):
        """What it says of this cluster with --json."""
        result = self.ctl(*arguments, "--json")
        assert result.returncode == code, (arguments, result.returncode, result.stdout, result.stderr)
        return json.loads(result.stdout)

    def ctl_router(self, *arguments, address=None, trust=None):
        """The same through a router, without etcd."""
        return subprocess.run([os.path.join(BIN, "sluicectl"), "--router", address or self.state["control"],
                               *(self.trust() if trust is None else trust), *arguments],
                              capture_output=True, text=True, timeout=PATIENCE)

    def check_ledger(self, *arguments):
        """Who owns each page of each living node: nothing that cannot be. Nodes that died may still be members."""
        last = {}

        def all_heard():
            last["result"] = result = self.ctl("check", "--ledger", "--json", *arguments)
            found = json.loads(result.stdout or '{"nodes": []}')
            living = {node["name"] for node in self.refresh()["nodes"] if node["role"] in ("prefill", "decode") and node["alive"]}
            return found if living <= {node["node"] for node in found["nodes"]} else None
        try:
            found = wait_for(all_heard, "every living node's ledger")
        except AssertionError:
            raise AssertionError(f"sluicectl check: {last['result']}")
        assert not found["violations"], found["violations"]
        return found

    # ---- etcd ----

    def etcdctl(self, *arguments):
        namespace = self.node("etcd-0")["namespace"]
        enter = ["ip", "netns", "exec", namespace] if namespace else []
        tls = self.state.get("tls")
        secure = ["--cacert", tls["ca"], "--cert", tls["cert"], "--key", tls["key"]] if tls else []
        if self.state.get("etcd_password_file"):
            with open(self.state["etcd_password_file"]) as file:
                secure += ["--user", f"root:{file.read().strip()}"]
        result = subprocess.run([*enter, "etcdctl", "--endpoints", ",".join(self.state["etcd"]), *secure, *arguments], capture_output=True,
                                text=True, env={**os.environ, "ETCDCTL_API": "3"})
        if result.returncode != 0:
            raise AssertionError(f"etcdctl: {result.stderr}")
        return result.stdout

    def members(self):
        """{name: record} as etcd holds them."""
        lines = self.etcdctl("get", "--prefix", f"/sluice/v1/{self.state['cluster']}/members/").splitlines()
        return {key.rsplit("/", 1)[1]: json.loads(value) for key, value in zip(lines[::2], lines[1::2])}


def protobuf(**fields):
    """One message: f1="text", f2=7, f3=b"..", .. (numbers of fields; strings, varints, and bytes: messages or packed numbers)."""
    def varint(value):
        out = b""
        while value > 127:
            out, value = out + bytes([value & 127 | 128]), value >> 7
        return out + bytes([value])
    out = b""
    for name, value in fields.items():
        number = int(name[1:])
        if isinstance(value, (str, bytes)):
            data = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(data)) + data
        else:
            out += varint(number << 3) + varint(value)
    return out


def grpc_raw(address, method, messages, seconds):
    """A call by curl, all messages at once: what came back, as it was."""
    frames = b"".join(b"\0" + len(message).to_bytes(4, "big") + message for message in messages)
    return subprocess.run(["curl", "-sS", "-i", "--http2-prior-knowledge", "--max-time", str(seconds), "-H", "te: trailers", "-H",
                           "content-type: application/grpc", "--data-binary", "@-", f"http://{address}/{method}"],
                          input=frames, capture_output=True)


def grpc(address, method, message=b"", seconds=60):
    """One unary call: (grpc-status, grpc-message, reply bytes)."""
    result = grpc_raw(address, method, [message], seconds)
    status = re.findall(rb"grpc-status: (\d+)\r", result.stdout)  # trailers follow the body's last byte
    text = re.findall(rb"grpc-message: (.*?)\r", result.stdout)
    if not status:
        raise AssertionError(f"{method}: no status: {result.stderr.decode()} {result.stdout!r}")
    body = result.stdout.split(b"\r\n\r\n", 1)[1]
    size = int.from_bytes(body[1:5], "big") if len(body) > 5 and body[0] == 0 else 0
    return int(status[-1]), urllib.parse.unquote(text[-1].decode()) if text else "", body[5:5 + size]


class Reference:
    """`sluice-run`, the one process that every cluster must equal. Results are kept for the run."""

    def __init__(self):
        self.known = {}
        self.lock = threading.Lock()

    def run(self, arguments):
        key = json.dumps(arguments)
        with self.lock:
            if key not in self.known:
                with tempfile.NamedTemporaryFile("w", suffix=".json") as ids:
                    if arguments[0] == "--ids":  # the ids of a long prompt are more than an argument may have
                        json.dump({"ids": arguments[1]}, ids)
                        ids.flush()
                        arguments = ["--config", ids.name, *arguments[2:]]
                    result = subprocess.run([os.path.join(BIN, "sluice-run"), "--model", MODEL, "--json", *RUN_ARGS, *arguments],
                                            capture_output=True, text=True)
                if result.returncode != 0:
                    raise AssertionError(f"sluice-run: {result.stderr}")
                self.known[key] = json.loads(result.stdout)
            return self.known[key]

    def ids(self, prompt_ids, max_tokens, temperature=0.0, top_p=1.0, seed=0):
        """The tokens generated after prompt_ids."""
        out = self.run(["--ids", ",".join(map(str, prompt_ids)), "--max-tokens", str(max_tokens), "--temperature",
                        str(temperature), "--top-p", str(top_p), "--seed", str(seed)])
        return out["ids"]


REFERENCE = Reference()


def tokenize(text):
    result = subprocess.run([os.path.join(BIN, "sluice-run"), "--model", MODEL, "--tokenize"], input=text, capture_output=True,
                            text=True)
    return json.loads(result.stdout)["ids"]


def book_text(words, seed=1):
    """English-like filler from a fixed generator: no file needed, the same on every machine."""
    vocabulary = ("the of and a to in he was that his it with her as had for she at on by which be not from but him they were all "
                  "this when who would there been so said an out one up into them their no more then will we could some man time "
                  "little now upon than like any about over such before two good after great old day eyes hand house night way "
                  "long came through light door room again water morning stone garden river letter road").split()
    state, out = seed, []
    for index in range(words):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        word = vocabulary[(state >> 33) % len(vocabulary)]
        out.append(word.capitalize() if index % 12 == 0 else word + ("." if index % 12 == 11 else ""))
    return " ".join(out)


def needle_prompt(words, name="Alice", number="48213", seed=1):
    text = book_text(words, seed)
    cut = text.index(" ", len(text) * 2 // 5)
    return f"{text[:cut]} The secret number of {name} is {number}. {text[cut + 1:]}\n\nWhat is the secret number of {name}?"


def has_netns():
    probe = f"sluprobe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True).returncode == 0
    usable = made and subprocess.run(["ip", "netns", "exec", probe, "true"], capture_output=True).returncode == 0
    if made:
        subprocess.run(["ip", "netns", "del", probe], capture_output=True)
    return usable


def metric_names(text):
    return set(re.findall(r"^(sluice_\w+)", text, re.M))
