"""A foreign gRPC client (python3-grpcio) lists the services by reflection, learns their messages and calls them, also by TLS."""

import json
import os
import subprocess

from lib import ROOT, Cluster, Skip

PYTHON = "/usr/bin/python3"  # Debian's, for which python3-grpcio is


def client(address, *arguments):
    result = subprocess.run([PYTHON, os.path.join(ROOT, "tests", "cluster", "reflection_client.py"), address, *arguments],
                            capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def need_client():
    if subprocess.run([PYTHON, "-c", "import grpc, google.protobuf"], capture_output=True).returncode != 0:
        raise Skip("python3-grpcio is not installed: make deps")


def test_lists_and_calls():
    need_client()
    with Cluster("reflection") as cluster:
        router = client(cluster.node("router-0")["control"], "sluice.v1.Cluster/ListMembers", "{}", "grpc.health.v1.Health/Check", "{}",
                        "sluice.v1.Cluster/Cordon", json.dumps({"node": "decode-9", "cordoned": True}),
                        "sluice.v1.Cluster/SetScale", json.dumps({"prefill": 1, "decode": 2, "dry_run": True}),
                        "sluice.v1.Cluster/GetSettings", "{}")
        assert set(router["services"]) == {"sluice.v1.Cluster", "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}, router
        assert {"ListMembers", "Cordon", "SetScale", "ListEvents"} <= set(router["services"]["sluice.v1.Cluster"]), router
        members, health, refused, scale, settings = router["replies"]
        assert {member["name"] for member in members["members"]} == {"router-0", "prefill-0", "decode-0"}, members
        assert health == {"status": "SERVING"} and refused["error"] == "NOT_FOUND" and "decode-9" in refused["text"], router
        assert scale["decode_wanted"] == 2 and len(settings["settings"]) > 5, router
        node = client(cluster.node("decode-0")["control"], "sluice.v1.Node/GetStatus", "{}", "sluice.v1.Node/Resume", "{}")
        assert {"sluice.v1.Node", "sluice.v1.Decode"} <= set(node["services"]), node
        assert node["replies"][0]["name"] == "decode-0" and node["replies"][0]["state"] == "ready", node
        assert node["replies"][1]["error"] == "ABORTED", node


def test_by_tls():
    need_client()
    with Cluster("reflection-tls", "--tls") as cluster:
        pki = os.path.join(cluster.directory, "pki")
        files = ["--ca", f"{pki}/ca.pem", "--cert", f"{pki}/client.pem", "--key", f"{pki}/client.key"]
        found = client(cluster.node("decode-0")["control"], *files, "sluice.v1.Node/GetStatus", "{}", "sluice.v1.Node/Drain", "{}")
        assert found["replies"][0]["name"] == "decode-0" and found["replies"][1]["error"] == "PERMISSION_DENIED", found
