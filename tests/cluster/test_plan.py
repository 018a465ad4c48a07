"""The planner: what load asks for is told, and done if that is allowed."""

from lib import Cluster, wait_for
from test_scale import Load

# Quick windows; two requests at a time, so that twelve clients wait for room. One prefill node is always enough.
ROUTER = ("--plan-window 1s --plan-windows 2 --plan-pause 1s --plan-queue 2 --plan-prefill-max 1 --plan-decode-max 2"
          " --ttft-target 1ms --tpot-target 1m")


def advised(cluster, decode):
    """What `scale plan` says, once that many decode nodes are advised."""
    def asked():
        plan = cluster.ctl_json("scale", "plan")
        return plan if plan["decode_advised"] == decode else None
    return wait_for(asked, f"an advice of {decode} decode nodes")


def plan_acts(cluster):
    return [e for e in cluster.ctl_json("events", "--limit", "1000")["events"] if e["kind"] == "scale apply" and e["actor"].startswith("controller")]


def test_advised_then_done():
    """1P1D under load: one more decode node is advised and nothing done; with --plan act it comes; idle, it goes."""
    with Cluster("plan", "--routers", 2, "--router-args", ROUTER, "--decode-args", "--max-sequences 2") as cluster:
        with Load(cluster, clients=12):
            plan = advised(cluster, 2)
            assert plan["plan"] == "advise" and not plan["set"] and plan["decode"] == plan["decode_wanted"] == 1, plan
            assert "wait" in plan["decode_reason"] and "windows in a row" in plan["decode_reason"], plan
            assert plan["prefill_advised"] == 1 and plan["prefill_reason"], plan
            leader = cluster.metrics(plan["leader"])
            assert leader['sluice_scale_wanted{role="decode"}'] == 1, leader
            assert {'sluice_scale_queue{role="prefill"}', 'sluice_scale_busy{role="prefill"}', 'sluice_scale_busy{role="decode"}'} <= set(leader)
            assert cluster.metrics("router-0")['sluice_target_requests_total{outcome="ttft_missed"}'] > 0
            assert cluster.metrics("router-0")['sluice_target_requests_total{outcome="tpot_kept"}'] > 0
            assert not plan_acts(cluster)
            said = cluster.ctl("scale", "plan").stdout
            assert "ADVISED" in said and "--plan advise" in said, said
            assert cluster.ctl("settings", "set", "plan", "act").returncode == 0
            wait_for(lambda: cluster.ctl_json("scale", "plan")["decode"] == 2, "another decode node")
            act, = plan_acts(cluster)
            assert act["actor"] == f"controller {plan['leader']}" and act["text"].startswith("prefill 1, decode 2 wanted; there are 1 and 1: "), act
            cluster.refresh()
        wait_for(lambda: cluster.ctl_json("scale", "plan")["decode"] == 1, "the node too many to go")
        assert [e["text"][:26] for e in plan_acts(cluster)] == ["prefill 1, decode 2 wanted", "prefill 1, decode 1 wanted"], plan_acts(cluster)
        plan = cluster.ctl_json("scale", "plan")
        assert plan["set"] and plan["decode_wanted"] == 1, plan
        cluster.refresh()


def test_off_says_nothing():
    """Without a plan nothing is told; with one, a node that does not answer is noticed. With certificates: the leader asks as a node."""
    with Cluster("plan-off", "--tls", "--router-args", "--plan off") as cluster:
        wait_for(lambda: cluster.ctl_json("scale", "plan")["leader"], "a leader")
        plan = cluster.ctl_json("scale", "plan")
        assert plan["plan"] == "off" and not plan["decode_reason"] and plan["decode_advised"] == plan["decode_wanted"], plan
        assert cluster.ctl("settings", "set", "plan", "sometimes").returncode == 1
        assert cluster.ctl("settings", "set", "plan", "advise").returncode == 0
        wait_for(lambda: cluster.ctl_json("scale", "plan")["decode_reason"], "a plan")
        cluster.kill("prefill-0", "STOP")
        wait_for(lambda: "a node is ill" in cluster.ctl_json("scale", "plan")["decode_reason"], "a pause")
        cluster.kill("prefill-0", "CONT")
