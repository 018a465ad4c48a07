"""The leading router spreads experts by their load: it tells, then does; no stream is wrong, no stream waits."""

import statistics
import time

from lib import Cluster, wait_for
from test_ep import end_loads, on_version, read_placement, start_loads
from test_one_answer import prompts

# Quick windows; of few rows, so that slow machines are judged too.
ROUTER = "--self-prefill=false --rebalance-window 2s --rebalance-windows 2 --rebalance-rows 20 --rebalance-pause 1s --rebalance-over 1.1"


def start(cluster, alike, mixed):
    """The same prompt again and again wants few experts; a few others, seeded, are there to be compared."""
    work = [(prompts(1, 30, 40)[0], 100, 0.0, 7)] * alike
    work += [(ids, 100, 1.0, 70 + index) for index, ids in enumerate(prompts(mixed, 5, 60))]
    return start_loads(cluster, work)


def look(cluster):
    """What the leader says of decode-0; None: nothing yet."""
    top = cluster.ctl_json("top", "--count", "1")
    return next((instance for instance in top["instances"] if instance["instance"] == "decode-0"), None)


def measured(cluster, version):
    """Load of the heaviest rank over the mean, by what the ranks do from now on."""
    shown = cluster.ctl_json("placement", "show", "decode-0", "--window", "4s")
    assert shown["version"] == version and all(rank["placement"] == version for rank in shown["ranks"]), shown
    return shown["imbalance_measured"]


def acts(cluster):
    return [e for e in cluster.ctl_json("events", "--limit", "1000")["events"] if e["kind"] == "placement"]


def report(streams, begun, ended, before, after, done):
    gaps = [gap for stream in streams for gap in stream.gaps()]
    during = [late - at for stream in streams for at, late in zip(stream.times, stream.times[1:]) if begun <= late and at <= ended]
    print(f"imbalance (heaviest rank / mean) {before:.3f} before, {after:.3f} after, by the rows of 4 s each "
          f"(planned {done['planned_before']:.3f} -> {done['planned_after']:.3f}); {done['moves']} experts moved, {done['bytes'] / 1e6:.1f} MB; "
          f"rolled out in {done['roll_out_us'] / 1e6:.2f} s by the leader, {ended - begun:.2f} s by the test; slowest token during it "
          f"{max(during) * 1e3:.0f} ms, median of all {statistics.median(gaps) * 1e3:.0f} ms, slowest of all {max(gaps) * 1e3:.0f} ms", flush=True)


def spread(cluster):
    """Advised and left alone, then done, once."""
    loads = start(cluster, 12, 4)
    advised = wait_for(lambda: (lambda seen: seen if seen and seen["advised"] else None)(look(cluster)), "an advice")
    assert advised["placement"] == 1 and advised["planned_after"] < advised["planned_before"], advised
    assert read_placement(cluster)[0]["version"] == 1 and not acts(cluster)
    plan = cluster.ctl_json("placement", "plan", "decode-0")
    assert plan["rebalance"] == "advise" and plan["rebalance_reason"], plan
    assert "--rebalance advise" in cluster.ctl("placement", "plan", "decode-0").stdout
    doctor = cluster.ctl("doctor").stdout
    assert "decode-0" in doctor and "settings set rebalance act" in doctor, doctor
    before = measured(cluster, 1)
    assert cluster.ctl("settings", "set", "rebalance-pause", "10m").returncode == 0  # once is enough for a test
    assert cluster.ctl("settings", "set", "rebalance", "act").returncode == 0
    wait_for(lambda: read_placement(cluster)[0]["version"] == 2, "another placement")
    begun = time.monotonic()
    wait_for(lambda: on_version(cluster, 2), "all ranks to use it")
    ended = time.monotonic()
    done = wait_for(lambda: (lambda seen: seen if seen and seen.get("roll_out_us") else None)(look(cluster)), "the leader to see that")
    after = measured(cluster, 2)
    assert after < before, (before, after)
    act, = acts(cluster)
    leader = cluster.ctl_json("scale", "plan")["leader"]
    assert act["actor"] == f"controller {leader}" and act["text"].startswith("version 2: ") and act["subject"] == "decode-0", act
    assert cluster.metric(leader, 'sluice_rebalances_total{instance="decode-0"}') == 1
    assert cluster.metric(leader, 'sluice_rebalance_seconds{instance="decode-0"}') > 0
    assert f"experts of decode-0: --rebalance act: {look(cluster)['reason'][:10]}" in cluster.ctl("top", "--count", "1").stdout
    streams = end_loads(loads, "experts were spread")
    print(f"{len(streams)} answers equal to one process", flush=True)
    report(streams, begun, ended, before, after, done)
    assert len(acts(cluster)) == 1, "it did so twice within a pause"
    cluster.wait_at_rest()


def test_an_uneven_load_is_spread():
    with Cluster("rebalance", "--decode-ep", 4, "--threads", 1, "--routers", 2, "--router-args", ROUTER,
                 "--env", "*:SLUICE_FAULTS=decode.step=slow=30") as cluster:
        spread(cluster)


def full_an_old_leader_spreads_nothing():
    """The leader is stopped while it counts uneven windows; another one leads, waits, acts; the old one, let go, does nothing."""
    router = f"{ROUTER.replace('pause 1s', 'pause 10s')} --rebalance act"
    with Cluster("rebalance-fence", "--decode-ep", 4, "--threads", 1, "--routers", 2, "--lease", "2s", "--router-args", router,
                 "--env", "*:SLUICE_FAULTS=decode.step=slow=30") as cluster:
        old = wait_for(lambda: cluster.ctl_json("scale", "plan")["leader"], "a leader")
        other = next(name for name in ("router-0", "router-1") if name != old)
        cluster.state["http"] = cluster.node(other)["http"]  # clients of a router that is stopped would wait for it
        loads = start(cluster, 12, 4)
        wait_for(lambda: cluster.metrics(old).get('sluice_ep_imbalance{instance="decode-0"}', 0) > 1.1, "the leader to see an uneven load")
        cluster.kill(old, "STOP")
        try:
            wait_for(lambda: cluster.metric(other, "sluice_leader") == 1, "another leader")
            wait_for(lambda: on_version(cluster, 2), "the new leader to act")
        finally:
            cluster.kill(old, "CONT")
        wait_for(lambda: cluster.metric(old, "sluice_leader") == 0, "the old one to know it")
        end_loads(loads, "a leader was stopped")
        act, = acts(cluster)
        assert act["actor"] == f"controller {other}", act
