"""Certificates, roles, etcd's own TLS and users: who may do what, and what those who may not are told."""

import http.client
import json
import os
import subprocess

from lib import BIN, REFERENCE, Cluster, book_text, wait_for

QUESTION = "Who are you?"


def pki(directory, *arguments):
    subprocess.run([os.path.join(BIN, "sluicectl"), "pki", *arguments, "--dir", directory], check=True, capture_output=True)


def write_secret(path, text):
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text + "\n")


def options(directory, name, ca=None):
    return ["--tls-ca", ca or f"{directory}/ca.pem", "--tls-cert", f"{directory}/{name}.pem", "--tls-key", f"{directory}/{name}.key"]


def test_roles():
    """Everything by TLS, and the same answers; each role does what it may and is told what it may not; the audit names the certificate."""
    with Cluster("trust-roles", "--tls", "--decode", 2, "--routers", 2, "--router-args", "--threads 2") as cluster:
        expected = REFERENCE.run(["--chat", "--max-tokens", "40", "--temperature", "0", QUESTION])["ids"]
        answer = cluster.chat(QUESTION, temperature=0, max_tokens=40, stream=True)
        assert answer.token_ids == expected, answer.error
        cluster.wait_at_rest()
        client, node, operator = (cluster.trust(name) for name in ("client", "decode-0", None))
        for trust in (client, node, operator):
            assert cluster.ctl("members", trust=trust).returncode == 0
            assert cluster.ctl_router("members", trust=trust).returncode == 0
        for arguments in (("drain", "decode-1"), ("check", "--ledger"), ("cordon", "decode-1"), ("settings", "set", "attempts", "2"),
                          ("requests",), ("events",), ("weights", "pause"), ("weights", "resume"), ("trace", "r-1"),
                          ("weights", "reload", "--model", "x")):
            denied = cluster.ctl(*arguments, trust=client)
            assert denied.returncode == 1 and "client client may not call /sluice.v1." in denied.stderr and \
                "an operator's certificate" in denied.stderr, (arguments, denied)
        assert cluster.ctl("cordon", "decode-1", "--reason", "fan").returncode == 0
        assert cluster.ctl("drain", "decode-1").returncode == 0
        events = cluster.ctl_json("events")["events"]
        assert {e["actor"] for e in events if e["kind"] in ("cordon", "drain")} == {"operator operator"}, events


def test_strangers():
    """Foreign, expired, absent certificates and plain text are refused on both sides with words that say so; nothing else is disturbed."""
    with Cluster("trust-strangers", "--tls") as cluster:
        own, foreign = os.path.join(cluster.directory, "pki"), os.path.join(cluster.directory, "pki", "foreign")
        pki(foreign, "init")
        pki(foreign, "issue", "operator", "eve")
        pki(own, "issue", "operator", "old", "--valid", "1s")
        both = os.path.join(foreign, "both.pem")
        with open(both, "w") as out:
            for path in (f"{foreign}/ca.pem", f"{own}/ca.pem"):
                with open(path) as file:
                    out.write(file.read())

        def told(trust, *words, arguments=("members",)):
            result = cluster.ctl_router("--call-timeout", "5s", *arguments, trust=trust)
            assert result.returncode == 1 and any(word in result.stderr for word in words), result
        told(options(foreign, "eve"), "its certificate is foreign or expired")                       # we do not trust the server
        told(options(foreign, "eve", f"{own}/ca.pem"), f"not issued by --tls-ca {own}/ca.pem")       # seen before a connection is made
        # The server does not trust us. gRPC may meet the other authority of the same name first: then it is told the other way round.
        told(options(foreign, "eve", both), "refused our certificate", "foreign or expired")
        told(["--tls-ca", f"{own}/ca.pem"], "refused our certificate")
        told([], "it may want TLS")
        wait_for(lambda: "expired on" in cluster.ctl_router("members", trust=options(own, "old")).stderr, "the certificate's end")
        told([*options(own, "operator")[:4], "--tls-key", f"{own}/client.key"], "not the key of")
        told(options(own, "operator")[:4], "go together")
        told(["--tls-ca", "/nowhere"], "open /nowhere")
        told(["--tls-ca", f"{own}/ca.key"], "no certificate in PEM form")
        etcd = cluster.ctl("--etcd-timeout", "2s", "members", trust=["--etcd-ca", f"{own}/ca.pem"])
        assert etcd.returncode == 1 and "refused our certificate" in etcd.stderr, etcd.stderr
        plain = cluster.ctl("members", trust=[])
        assert plain.returncode == 1 and "needs --etcd-ca" in plain.stderr, plain.stderr
        # A node needs a node's certificate: with an operator's it does not start.
        argv = [word.replace("/decode-0.pem", "/operator.pem").replace("/decode-0.key", "/operator.key") for word in cluster.node("decode-0")["argv"]]
        wrong = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        assert wrong.returncode == 1 and "operator's of role operator: here one of role node is needed" in wrong.stderr, wrong.stderr
        assert cluster.chat(QUESTION, temperature=0, max_tokens=4).status == 200
        assert cluster.ctl("check").returncode == 0


def test_etcd_users():
    """etcd with users: right ones serve, also when etcd forgets their tokens; wrong ones are told at once, by tool and daemon alike."""
    with Cluster("trust-users", "--etcd-auth", "--lease", "3s") as cluster:
        assert cluster.ctl("members").returncode == 0
        assert cluster.chat(QUESTION, temperature=0, max_tokens=4).status == 200
        path = os.path.join(cluster.directory, "wrong-password")
        write_secret(path, "wrong")
        wrong = ["--etcd-user", "sluice", "--etcd-password-file", path]
        for trust, text in ((wrong, "are --etcd-user and --etcd-password-file right?"),
                            (["--etcd-user", "nobody", "--etcd-password-file", path], "as user nobody"), ([], "etcdserver: user name is empty"),
                            (["--etcd-user", "sluice"], "go together"), (["--etcd-user", "x", "--etcd-password-file", "/nowhere"], "/nowhere")):
            denied = cluster.ctl("--etcd-timeout", "3s", "members", trust=trust)
            assert denied.returncode == 1 and text in denied.stderr, denied.stderr
        os.chmod(path, 0o644)
        opened = cluster.ctl("members", trust=wrong)
        assert opened.returncode == 1 and f"--etcd-password-file {path}: open to others (mode 644)" in opened.stderr, opened.stderr
        os.chmod(path, 0o600)
        argv = list(cluster.node("decode-0")["argv"])
        argv[argv.index("--etcd-password-file") + 1] = path
        denied = subprocess.run([*argv, "--etcd-timeout", "2s", "--name", "decode-9", "--control", "127.0.0.1:0", "--metrics", "127.0.0.1:0"],
                                capture_output=True, text=True, timeout=60)
        assert denied.returncode == 1 and "--etcd-password-file right?" in denied.stderr, denied.stderr
        outside = subprocess.run(["etcdctl", "--endpoints", ",".join(cluster.state["etcd"]), "--user",
                                  "sluice:" + open(cluster.state["etcd_password_file"]).read().strip(), "put", "/elsewhere", "x"],
                                 capture_output=True, text=True, env={**os.environ, "ETCDCTL_API": "3"})
        assert "permission denied" in outside.stderr, outside
        cluster.kill("etcd-0", "TERM")  # its tokens are in memory only
        wait_for(lambda: not cluster.alive("etcd-0"), "etcd's end")
        cluster.start("etcd-0")
        wait_for(lambda: cluster.metrics("router-0").get("sluice_etcd_connected") == 1, "etcd again")
        wait_for(lambda: cluster.ctl("cordon", "decode-0").returncode == 0, "an action with a new token")
        wait_for(lambda: "node decode-0 is cordoned" in cluster.log("router-0"), "the watch with a new token")
        assert cluster.ctl("uncordon", "decode-0").returncode == 0
        wait_for(lambda: cluster.chat(QUESTION, temperature=0, max_tokens=4).status == 200, "an answer")


def test_pki():
    directory = os.path.join(os.path.dirname(BIN), "test-clusters", "trust-pki")
    subprocess.run(["rm", "-rf", directory], check=True)

    def ctl(*arguments):
        return subprocess.run([os.path.join(BIN, "sluicectl"), "pki", *arguments, "--dir", directory], capture_output=True, text=True)
    early = ctl("issue", "node", "n")
    assert early.returncode == 1 and "made by: sluicectl pki init" in early.stderr, early.stderr
    assert ctl("init", "--dry-run").returncode == 0 and not os.path.exists(directory)
    assert ctl("init").returncode == 0 and ctl("issue", "node", "n", "--host", "10.0.0.1,n.example").returncode == 0
    again = ctl("init")
    assert again.returncode == 1 and "if it is not needed, move it away): File exists" in again.stderr, again.stderr
    assert ctl("issue", "boss", "b").returncode == 2 and ctl("issue", "node", "../x").returncode == 2 and ctl("issue", "node", "ca").returncode == 2
    assert ctl("issue", "node", "m", "--host", "not a host,,IP:x").returncode in (0, 1)
    assert os.stat(f"{directory}/ca.key").st_mode & 0o777 == 0o600 and os.stat(f"{directory}/n.key").st_mode & 0o777 == 0o600
    text = subprocess.run(["openssl", "x509", "-in", f"{directory}/n.pem", "-noout", "-subject", "-ext", "subjectAltName"],
                          capture_output=True, text=True, check=True).stdout
    for part in ("OU = node", "CN = n", "DNS:node.sluice.internal", "IP Address:10.0.0.1", "DNS:n.example"):
        assert part in text, text
    assert subprocess.run(["openssl", "verify", "-CAfile", f"{directory}/ca.pem", f"{directory}/n.pem"], capture_output=True).returncode == 0


def restart_router(cluster, name, path):
    """With this file as its cluster secret; None: without one."""
    state = json.load(open(os.path.join(cluster.directory, "cluster.json")))
    node = next(n for n in state["nodes"] if n["name"] == name)
    at = node["argv"].index("--cluster-secret-file") if "--cluster-secret-file" in node["argv"] else None
    if at is not None:
        del node["argv"][at:at + 2]
    if path:
        node["argv"] += ["--cluster-secret-file", path]
    cluster.kill(name, "TERM")
    wait_for(lambda: not cluster.alive(name), f"{name}'s end")
    json.dump(state, open(os.path.join(cluster.directory, "cluster.json"), "w"))
    cluster.start(name)
    wait_for(lambda: usable(cluster, name) == 2, f"{name} again")


def usable(cluster, name):
    return sum(value for key, value in cluster.metrics(name).items() if key.startswith("sluice_usable_nodes"))


def cached(cluster, router, prompt, expected, **fields):
    """Tokens of the prompt that were not computed; the answer is the same in any case."""
    connection = http.client.HTTPConnection(cluster.node(router)["http"], timeout=cluster.patience)
    connection.request("POST", "/v1/completions", json.dumps({"model": "demo", "prompt": prompt, "temperature": 0, "max_tokens": 6, **fields}))
    answer = json.loads(connection.getresponse().read())
    connection.close()
    assert answer["choices"][0]["text"] == expected, (answer, expected)
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def secrets_found(cluster):
    return [f["text"] for f in cluster.ctl_json("doctor")["findings"] if "cluster secret" in f["text"] + f["subject"]]


def test_cluster_secret():
    """Routers share kept prefixes under one secret only, salt or not; another one or none is told by doctor and changes no answer; a rotation,
    router by router; a file that is none, too short, absent or open to others is refused at the start."""
    with Cluster("trust-secret", "--routers", 2) as cluster:
        prompt = book_text(300)
        expected = REFERENCE.run(["--max-tokens", "6", "--temperature", "0", prompt])["text"]
        path = os.path.join(cluster.directory, "other-secret")
        write_secret(path, "another secret of at least 32 bytes")

        def both(first, second, **fields):
            """Whether the second router finds what came by the first one; each time in a cache space of its own."""
            fields["cache_salt"] = os.urandom(8).hex()
            assert cached(cluster, first, prompt, expected, **fields) == 0
            return cached(cluster, second, prompt, expected, **fields) > 0
        assert cached(cluster, "router-0", prompt, expected) == 0 and cached(cluster, "router-1", prompt, expected) > 0
        assert both("router-0", "router-1") and secrets_found(cluster) == ["all routers have the same"]
        for other, text in ((None, "has no cluster secret, unlike router-0"), (path, "has another cluster secret than router-0")):
            restart_router(cluster, "router-1", other)
            assert cached(cluster, "router-1", prompt, expected) == 0, "found without the secret"
            assert not both("router-0", "router-1")
            found = secrets_found(cluster)
            assert len(found) == 1 and text in found[0], found
        restart_router(cluster, "router-0", path)
        assert both("router-0", "router-1") and secrets_found(cluster) == ["all routers have the same"]
        assert all(len(r["secret_mark"]) == 16 for name, r in cluster.members().items() if name.startswith("router"))
        argv = [*cluster.node("router-1")["argv"], "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0"]
        for change, text in ((lambda: os.chmod(path, 0o640), None), (lambda: os.chmod(path, 0o644), "open to others (mode 644): chmod 600 it"),
                             (lambda: write_secret(path, "short"), "open to others"), (lambda: os.chmod(path, 0o600), "want 32 to 512 bytes"),
                             (lambda: os.remove(path), "No such file"), (lambda: os.mkdir(path), "not a regular file")):
            change()
            if text:
                wrong = subprocess.run(argv, capture_output=True, text=True, timeout=60)
                assert wrong.returncode == 1 and "--cluster-secret-file" in wrong.stderr and text in wrong.stderr, (text, wrong)
        os.rmdir(path)
        cluster.wait_at_rest()
