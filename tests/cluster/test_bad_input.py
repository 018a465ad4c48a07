"""Whatever a client or an operator does wrong gets a clear error that says what to do; good requests beside it are not touched."""

import json
import os
import shutil
import socket
import subprocess

from lib import BIN, MODEL, PATIENCE, ROOT, Cluster, grpc, grpc_raw, protobuf, wait_for

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "hi"}]


def expect(cluster, body, status, *parts, path=CHAT):
    got, _, answer = cluster.request("POST", path, body)
    text = answer.decode(errors="replace")
    assert got == status, (got, text)
    error = json.loads(text)["error"]
    assert error["message"] and error["type"], text
    for part in parts:
        assert part in json.dumps(error), (part, text)


def test_requests():
    with Cluster("bad-requests", "--router-args", "--body-max 1MiB") as cluster:
        expect(cluster, "{", 400, "JSON")
        expect(cluster, '{"messages": "no"}', 400, "messages")
        expect(cluster, {"messages": []}, 400, "messages")
        expect(cluster, {"messages": [{"role": "pope", "content": "x"}]}, 400, "role")
        expect(cluster, {"messages": USER, "temperature": "hot"}, 400, "temperature")
        expect(cluster, {"messages": USER, "temperature": 9}, 400, "temperature")
        expect(cluster, {"messages": USER, "max_tokens": -1}, 400, "max_tokens")
        expect(cluster, {"messages": USER, "stream": "yes"}, 400, "stream")
        expect(cluster, {"messages": USER, "model": "gpt-5"}, 404, "model")
        expect(cluster, {"prompt": [1, 99999999]}, 400, "prompt", path="/v1/completions")
        expect(cluster, {"prompt": list(range(3)) * 60000}, 400, "there are 180000 in the prompt", path="/v1/completions")
        expect(cluster, '{"messages": [{"role": "user", "content": "x"}], "temperature": 1e308}', 400, "1e308 is far out of range")
        expect(cluster, b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}', 400, "UTF-8")
        expect(cluster, {"messages": USER, "user": "x" * (2 << 20)}, 413)
        expect(cluster, {"messages": USER, "nonsense": {"deep": [1]}, "max_tokens": "3"}, 400, "max_tokens")
        assert cluster.request("POST", CHAT, {"model": "demo", "messages": USER, "nonsense": {"deep": [1]}, "max_tokens": 3})[0] == 200
        assert cluster.request("GET", "/nowhere")[0] == 404
        assert cluster.request("GET", CHAT)[0] == 405
        check_connections(cluster)
        cluster.wait_at_rest()


def test_sampling_at_its_edges():
    """Values that are legal and absurd: an answer, and the nodes live on."""
    with Cluster("sampling-edges") as cluster:
        for fields in ({"repetition_penalty": 1e-40}, {"repetition_penalty": 1e-30, "logprobs": True, "top_logprobs": 5},
                       {"temperature": 1e-40}, {"top_p": 1e-30}, {"min_p": 1}, {"frequency_penalty": -2, "presence_penalty": -2},
                       {"logit_bias": {str(token): -100 for token in range(300)}}):
            answer = cluster.chat("Who are you?", max_tokens=8, temperature=fields.pop("temperature", 1), **fields)
            assert answer.status == 200 and answer.usage["completion_tokens"] > 0, (fields, answer.body)
        assert all(cluster.alive(node["name"]) for node in cluster.nodes("decode") + cluster.nodes("prefill"))


def check_connections(cluster):
    """Slow and broken clients do not disturb the others."""
    host, port = cluster.state["http"].split(":")
    slow = socket.create_connection((host, int(port)))
    slow.sendall(b"POST " + CHAT.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
    garbage = socket.create_connection((host, int(port)))
    garbage.sendall(b"\x16\x03\x01 not http\r\n\r\n")
    assert b" 400 " in garbage.recv(4096)
    stalled = socket.create_connection((host, int(port)))
    body = json.dumps({"model": "demo", "messages": USER, "stream": True, "max_tokens": 300, "ignore_eos": True}).encode()
    stalled.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" %
                    (CHAT.encode(), len(body), body))
    # Nobody reads `stalled`; the decode node must finish all the same.
    wait_for(lambda: cluster.metric("decode-0", "sluice_generation_tokens_total") >= 300, "the stream nobody reads")
    assert cluster.chat("Who are you?", temperature=0).status == 200
    for connection in (slow, garbage, stalled):
        connection.close()


def run(program, *arguments):
    return subprocess.run([os.path.join(BIN, program), *arguments], capture_output=True, text=True, timeout=60)


def model_copy(name):
    directory = os.path.join(ROOT, "build", "test-models", name)
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(MODEL, directory)
    return directory


NODE = ("--name", "n", "--control", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--kv-listen", "127.0.0.1:0", "--kv-memory", "64MiB")


def test_model_files():
    broken = model_copy("truncated")
    part = os.path.join(broken, "model-00002-of-00003.safetensors")
    with open(part, "r+b") as file:
        file.truncate(1000000)
    result = run("sluice-decode", "--model", broken, *NODE)
    assert result.returncode == 1 and "model-00002-of-00003.safetensors" in result.stderr, result.stderr
    missing = model_copy("missing")
    os.remove(os.path.join(missing, "model-00003-of-00003.safetensors"))
    result = run("sluice-prefill", "--model", missing, *NODE)
    assert result.returncode == 1 and "model-00003-of-00003.safetensors" in result.stderr, result.stderr
    shaped = model_copy("shape")
    path = os.path.join(shaped, "config.json")
    config = json.load(open(path))
    config["q_lora_rank"] = 384
    json.dump(config, open(path, "w"))
    result = run("sluice-decode", "--model", shaped, *NODE)
    assert result.returncode == 1 and "q_a" in result.stderr and "384" in result.stderr, result.stderr
    result = run("sluice-router", "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0", "--model", os.path.join(broken, "nowhere"))
    assert result.returncode == 1 and "nowhere" in result.stderr, result.stderr


def test_command_lines():
    for program in ("sluice-decode", "sluice-prefill", "sluice-router", "sluice-run"):
        good = run(program, "--help")
        assert good.returncode == 0 and "--model" in good.stdout and not good.stderr, good
        assert run(program, "--version").returncode == 0
        bad = run(program, "--modle", "x")
        assert bad.returncode == 2 and "--modle" in bad.stderr and not bad.stdout, bad
    # Told before the model is opened, and by --check-config too.
    for program, option, value, advice in (("sluice-decode", "--kv-overcommit", "0.5", "1 to 100"), ("sluice-prefill", "--kv-disk", "kv", "FILE:SIZE"),
                                           ("sluice-decode", "--name", "N", "lower-case"), ("sluice-prefill", "--kv-listen", ":1", "interface"),
                                           ("sluice-router", "--name", "N", "lower-case"), ("sluice-router", "--listen", "8080", "host:port")):
        for more in ((), ("--check-config",)):
            named = ("--name", "n", option, value) if program != "sluice-router" else (option, value)
            bad = run(program, "--model", "nowhere", *named, *more)
            assert bad.returncode == 2 and option in bad.stderr and advice in bad.stderr and not bad.stdout, bad
    for program, more in (("sluice-decode", ("--name", "n")), ("sluice-prefill", ("--name", "n")), ("sluice-router", ())):
        good = run(program, "--model", MODEL, *more, "--check-config")
        assert good.returncode == 0 and good.stdout == "settings are fine\n", good
        for option, value, text in (("--model", "nowhere", "nowhere"), ("--tls-cert", "nowhere.pem", "tls")):
            bad = run(program, "--model", MODEL, *more, option, value, "--check-config")
            assert bad.returncode == 1 and text in bad.stderr and not bad.stdout, bad
    for option, value, text in (("--kv-memory", "1KiB", "page"), ("--context-max", "1000000", "positions"), ("--ep-size", "17", "16 experts"),
                                ("--kv-disk", "/nowhere/kv:1GiB", "/nowhere")):
        bad = run("sluice-decode", "--model", MODEL, "--name", "n", "--instance", "i", option, value, "--check-config")
        assert bad.returncode == 1 and text in bad.stderr and not bad.stdout, bad
    result = run("sluice-decode", "--model", MODEL, *NODE, "--kv-memory", "lots")
    assert result.returncode == 2 and "kv-memory" in result.stderr, result.stderr
    result = run("sluice-decode", "--model", MODEL, *NODE, "--kv-memory", "1KiB")
    assert result.returncode == 1 and "page" in result.stderr, result.stderr


def test_ports_and_etcd():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = "127.0.0.1:%d" % taken.getsockname()[1]
        for option in ("--control", "--metrics", "--kv-listen"):
            result = run("sluice-decode", "--model", MODEL, *NODE, option, address)
            assert result.returncode == 1 and address in result.stderr, (option, result.stderr)
        result = run("sluice-router", "--listen", address, "--control", "127.0.0.1:0", "--model", MODEL)
        assert result.returncode == 1 and address in result.stderr, result.stderr
    for program, more in (("sluice-decode", NODE), ("sluice-router", ("--listen", "127.0.0.1:0", "--control", "127.0.0.1:0"))):
        result = run(program, "--model", MODEL, *more, "--etcd", "http://127.0.0.1:9", "--etcd-timeout", "500ms")
        assert result.returncode == 1 and "127.0.0.1:9" in result.stderr and "loaded" not in result.stderr, result.stderr


def stamp_of(cluster, name):
    stamp = cluster.members()[name]["stamp"]
    return protobuf(f1=stamp["numerics_id"], f2=stamp["model_hash"], f3=stamp["weights_version"], f4=stamp["cache_format"])


def prefill(cluster, request, **want):
    tokens = bytes([5, 6, 7, 8])
    ticket = protobuf(f1=request, f5="nobody", f6="127.0.0.1:9", f8=1, f9=len(tokens), f10=1000, f11=stamp_of(cluster, "prefill-0"))
    message = protobuf(f1=request, f2=1, f3=tokens, f4=ticket, f7=protobuf(**want))
    return grpc(cluster.node("prefill-0")["control"], "sluice.v1.Prefill/Run", message)


def admit(cluster, *admits):
    """What a decode node says to a router that asks for so many admissions, and has nothing more to say then: that ends the call."""
    messages = [protobuf(f1=protobuf(f1="router-x"))] + [protobuf(f2=one) for one in admits]
    return grpc_raw(cluster.node("decode-0")["control"], "sluice.v1.Decode/Serve", messages, PATIENCE).stdout


def attach(cluster, *attaches, admitted):
    messages = [protobuf(f1=protobuf(f1="router-x")), protobuf(f2=admitted)] + [protobuf(f5=one) for one in attaches]
    return grpc_raw(cluster.node("decode-0")["control"], "sluice.v1.Decode/Serve", messages, PATIENCE).stdout


def test_what_nodes_are_asked():
    """A router that asks nonsense of a node is told so, and the node serves on."""
    sampling = protobuf(f10=4) + b"\x15\x00\x00\x80\x3f" + b"\x3d\x00\x00\x80\x3f"  # max_tokens 4, top_p 1, repetition_penalty 1
    with Cluster("bad-wire") as cluster:
        for index, (want, part) in enumerate((({"f1": 3, "f2": 3, "f3": 1}, "rows 3 to 3"), ({"f1": 0, "f2": 9, "f3": 1}, "rows 0 to 9"),
                           ({"f1": 0, "f2": 4}, "nothing is wanted"), ({"f1": 0, "f2": 4, "f4": 1, "f5": 21}, "21 alternatives"))):
            status, text, _ = prefill(cluster, f"r-bad-{index}", **want)
            assert status != 0 and part in text, (want, status, text)
        tokens = bytes([5, 6, 7, 8])
        # Each asks under an id of its own: one whose router has gone may still be closing.
        good = {"f1": "r-a", "f2": 1, "f3": tokens, "f4": 4, "f5": sampling, "f6": 500}
        said = admit(cluster, protobuf(**{**good, "f1": "r-copy"}, f7=1, f9="r-nobody"))
        assert b"whose prompt was to be copied, is not here" in said, said
        said = admit(cluster, protobuf(**good), protobuf(**{**good, "f1": "r-b", "f3": bytes([5, 6, 7, 9])}, f7=1, f9="r-a"))
        assert b"has another prompt, so it cannot be copied" in said, said
        said = admit(cluster, protobuf(**{**good, "f1": "r-rows"}, f12=protobuf(f1=0, f2=5, f3=1)))
        assert b"rows 0 to 5 of a prompt of 4 tokens" in said, said
        said = admit(cluster, protobuf(**{**good, "f1": "r-long", "f5": sampling.replace(protobuf(f10=4), protobuf(f10=1000000))}, f10=protobuf(f2=1)))
        assert b"routing and masks of 1000000 tokens may take" in said, said
        said = attach(cluster, protobuf(f1="r-nobody", f2=1, f3=7), protobuf(f1="r-c", f2=1, f3=99), admitted=protobuf(**{**good, "f1": "r-c"}))
        assert said.count(b"is not here any more") == 1, said  # the other one is attached already
        twice = protobuf(**{**good, "f1": "r-d"})
        said = admit(cluster, twice, twice)
        assert said.count(b"r-d") == 1 or b" is " not in said, said  # one ticket or two, and no refusal
        assert cluster.chat("Who are you?", max_tokens=4).status == 200
        cluster.wait_at_rest()
