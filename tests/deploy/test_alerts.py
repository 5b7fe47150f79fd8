"""Each alert fires on what it is for, alone, and is silent on a gateway that is well: told by Prometheus' own rule tester."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass

import pytest

from tests.deploy.prometheus import RULES

AT = 'instance="a:9464", job="volgate"'
CALLS = "rpc_server_duration_seconds_count"
HEALTHY = {
    f"up{{{AT}}}": "1+0x120",
    f"process_start_time_seconds{{{AT}}}": "1000+0x120",
    f'{CALLS}{{{AT}, rpc_method="m", rpc_grpc_status_code="OK"}}': "0+60x120",
    f'{CALLS}{{{AT}, rpc_method="m", rpc_grpc_status_code="NOT_FOUND"}}': "0+30x120",
    f'{CALLS}{{{AT}, rpc_method="m", rpc_grpc_status_code="UNAVAILABLE"}}': "0+1x120",
    f'{CALLS}{{{AT}, rpc_method="m", rpc_grpc_status_code="INTERNAL"}}': "3+0x120",
    f'{CALLS}{{{AT}, rpc_method="m", rpc_grpc_status_code="DATA_LOSS"}}': "1+0x120",
    f"volgate_operation_doubtful{{{AT}}}": "0+0x40 1+0x4 0+0x80",
    f"volgate_operation_oldest_seconds{{{AT}}}": "0+30x120",
    f'volgate_lane_slots{{{AT}, lane="p"}}': "8+0x120",
    f'volgate_lane_running{{{AT}, lane="p"}}': "8+0x120",
    f'volgate_lane_queued{{{AT}, lane="p"}}': "0+0x120",
    f'volgate_lane_refused_total{{{AT}, lane="p"}}': "7+0x120",
    f"volgate_host_known{{{AT}}}": "3+0x120",
    f"volgate_host_dead{{{AT}}}": "0+0x40 1+0x1 0+0x80",
    f'volgate_pool_health{{{AT}, pool="p"}}': "2+0x40 0+0x2 1+0x20 2+0x80",
    f'volgate_pool_size_bytes{{{AT}, pool="p"}}': "1000+0x120",
    f'volgate_pool_free_bytes{{{AT}, pool="p"}}': "101+0x120",
    f'volgate_pool_provisioned_bytes{{{AT}, pool="p"}}': "899+0x120",
    f'volgate_pool_limit_bytes{{{AT}, pool="p"}}': "1000+0x120",
    f'volgate_pool_provisioned_bytes{{{AT}, pool="unlimited"}}': "5000+0x120",
    f'volgate_pool_limit_bytes{{{AT}, pool="unlimited"}}': "0+0x120",
    f'volgate_worker_losses_total{{{AT}, pool="p"}}': "2+0x40 4+0x80",
    f'volgate_worker_stuck{{{AT}, pool="p"}}': "0+0x40 1+0x1 0+0x80",
}
"""Half an hour and more of a gateway at work: short troubles that mended themselves are in it, and old ones that were counted."""


@dataclass(frozen=True)
class Trouble:
    """Series in place of healthy ones; minutes after which the alert is still silent, and after which it fires."""

    alert: str
    series: dict[str, str]
    silent: int
    fires: int
    labels: str = ""


TROUBLES = [
    Trouble("VolgateDown", {f"up{{{AT}}}": "1+0x10 0+0x120"}, 6, 9),
    Trouble("VolgateRestarts", {f"process_start_time_seconds{{{AT}}}": "0+0x10 1+0x10 2+0x10 3+0x120"}, 14, 17),
    Trouble("VolgateBug", {f'{CALLS}{{{AT}, rpc_method="m", rpc_grpc_status_code="INTERNAL"}}': "_x30 1+0x120"}, 14, 17),
    Trouble("VolgateBug", {f'{CALLS}{{{AT}, rpc_method="m", rpc_grpc_status_code="INTERNAL"}}': "1+0x30 2+0x120"}, 14, 17),
    Trouble("VolgateDataLoss", {f'{CALLS}{{{AT}, rpc_method="m", rpc_grpc_status_code="DATA_LOSS"}}': "_x30 1+0x120"}, 14, 17),
    Trouble("VolgateDataLoss", {f'{CALLS}{{{AT}, rpc_method="m", rpc_grpc_status_code="DATA_LOSS"}}': "1+0x30 2+0x120"}, 14, 17),
    Trouble("VolgateUnavailable", {f'{CALLS}{{{AT}, rpc_method="m", rpc_grpc_status_code="UNAVAILABLE"}}': "0+20x120"}, 8, 20),
    Trouble("VolgateUnavailable", {f'{CALLS}{{{AT}, rpc_method="m", rpc_grpc_status_code="DEADLINE_EXCEEDED"}}': "0+20x120"}, 8, 20),
    Trouble("VolgateOperationInDoubt", {f"volgate_operation_doubtful{{{AT}}}": "0+0x10 1+0x120"}, 9, 12),
    Trouble("VolgateOperationOld", {f"volgate_operation_oldest_seconds{{{AT}}}": "42600+30x120"}, 9, 11),
    Trouble("VolgateLaneFull", {f'volgate_lane_queued{{{AT}, lane="p"}}': "0+0x10 3+0x120"}, 9, 12, 'lane="p"'),
    Trouble("VolgateLaneRefuses", {f'volgate_lane_refused_total{{{AT}, lane="p"}}': "7+0x10 7+1x120"}, 9, 13, 'lane="p"'),
    Trouble("VolgateHostDead", {f"volgate_host_dead{{{AT}}}": "0+0x10 1+0x120"}, 6, 9),
    Trouble("VolgatePoolDown", {f'volgate_pool_health{{{AT}, pool="p"}}': "2+0x10 0+0x120"}, 6, 9, 'pool="p"'),
    Trouble("VolgatePoolDegraded", {f'volgate_pool_health{{{AT}, pool="p"}}': "2+0x10 1+0x120"}, 19, 22, 'pool="p"'),
    Trouble("VolgatePoolNearlyFull", {f'volgate_pool_free_bytes{{{AT}, pool="p"}}': "101+0x10 99+0x120"}, 14, 17, 'pool="p"'),
    Trouble("VolgatePoolNearlyPromised", {f'volgate_pool_provisioned_bytes{{{AT}, pool="p"}}': "899+0x10 901+0x120"}, 14, 17, 'pool="p"'),
    Trouble("VolgateWorkerLost", {f'volgate_worker_losses_total{{{AT}, pool="p"}}': "2+0x10 3+1x120"}, 5, 10, 'pool="p"'),
    Trouble("VolgateWorkerStuck", {f'volgate_worker_stuck{{{AT}, pool="p"}}': "0+0x10 1+0x120"}, 5, 8, 'pool="p"'),
]


def firing(minute: int, *alerts: str) -> dict:
    """The expectation that these alerts fire at that minute, and no other."""
    samples = [{"labels": f"{{{alert}}}", "value": 1} for alert in alerts]
    return {
        "expr": 'max without (severity, alertstate, job) (ALERTS{alertstate="firing"})',
        "eval_time": f"{minute}m",
        "exp_samples": samples,
    }


def case(series: dict[str, str], *expected: dict) -> dict:
    return {
        "interval": "30s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": expected,
    }


def judged(tmp_path, *tests: dict) -> str:
    """What promtool says of these tests; "SUCCESS" if nothing is wrong."""
    file = tmp_path / "rules.test.yml"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "30s", "tests": tests}))  # JSON is YAML
    done = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True, timeout=120, check=False)
    return "SUCCESS" if done.returncode == 0 and "SUCCESS" in done.stdout else done.stdout + done.stderr


def test_a_healthy_gateway_is_left_in_peace(tmp_path):
    assert judged(tmp_path, case(HEALTHY, *(firing(minute) for minute in range(60)))) == "SUCCESS"


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.alert)
def test_an_alert_fires_when_it_should_and_alone(tmp_path, trouble):
    alert = ", ".join(filter(None, (f'alertname="{trouble.alert}"', 'instance="a:9464"', trouble.labels)))
    series = {**HEALTHY, **trouble.series}
    assert judged(tmp_path, case(series, firing(trouble.silent), firing(trouble.fires, alert))) == "SUCCESS"


def test_every_alert_is_in_the_list_above():
    assert {trouble.alert for trouble in TROUBLES} == set(re.findall(r"- alert: (\w+)", RULES.read_text()))


def test_a_rule_that_does_not_fire_would_be_found(tmp_path):
    assert "VolgateDown" in judged(tmp_path, case(HEALTHY, firing(9, 'alertname="VolgateDown", instance="a:9464"')))
