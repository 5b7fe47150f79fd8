"""The harness itself: its arithmetic, its refusal of missing and unknown rows, and the shape of what a tiny real run writes."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import __main__ as program
from tests.bench import targets
from tests.bench.measure import Pairs, Row, interleave, percentile
from tests.bench.targets import Target, WrongRows, judge

KEYS = {"name", "unit", "ours", "reference", "reference_name", "ratio", "target", "met"}


def test_ratio_is_the_median_of_pairs_and_not_the_ratio_of_medians() -> None:
    pairs = Pairs(ours=[9.0, 0.002, 0.030, 0.004], reference=[9.0, 0.001, 0.010, 0.004])
    middle, high = pairs.rows("x")
    assert (middle.name, middle.ours, middle.reference) == ("x p50", 4.0, 4.0)
    assert middle.ratio == pytest.approx(2.0)
    assert (high.name, high.ours, high.reference) == ("x p99", 30.0, 10.0)
    assert high.ratio == pytest.approx(3.0)
    assert pairs.middle("y").name == "y"


def test_turns_that_are_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        Pairs(ours=[1.0, 2.0, 3.0], reference=[1.0, 2.0]).rows("x")


def test_percentile_is_the_nearest_rank() -> None:
    hundred = [float(value) for value in range(100, 0, -1)]
    assert percentile(hundred, 0.99) == 99.0
    assert percentile(hundred, 0.5) == 50.0
    assert percentile([7.0], 0.99) == 7.0


def test_turns_alternate() -> None:
    order: list[str] = []
    pairs = interleave(range(3), lambda n: order.append(f"ours {n}"), lambda n: order.append(f"reference {n}"))
    assert order == [f"{side} {n}" for n in range(3) for side in ("ours", "reference")]
    assert len(pairs.ours) == len(pairs.reference) == 3


@pytest.mark.parametrize(
    ("rule", "limit", "ours", "reference", "ratio", "met"),
    [
        ("difference", 5.0, 14.9, 10.0, 1.49, True),
        ("difference", 5.0, 15.1, 10.0, 1.51, False),
        ("difference", 5.0, 1.0, None, None, False),
        ("ratio", 1.2, 100.0, 10.0, 1.2, True),
        ("ratio", 1.2, 1.0, 10.0, 1.21, False),
        ("ratio", 1.2, 1.0, None, None, False),
        ("absolute", 20.0, 20.0, None, None, True),
        ("absolute", 20.0, 20.1, 100.0, 0.2, False),
        ("context", 0.0, 1e9, None, None, True),
    ],
)
def test_a_target_is_judged_by_its_rule(
    rule: str, limit: float, ours: float, reference: float | None, ratio: float | None, met: bool
) -> None:
    assert Target("x", "g", "ms", rule, limit).met(Row("x", ours, reference, ratio)) is met


def test_missing_unknown_and_double_rows_are_refused() -> None:
    wanted = [Target("a", "g", "ms", "context"), Target("b", "g", "ms", "context")]
    with pytest.raises(WrongRows, match=r"b: in targets\.toml, but not measured"):
        judge(wanted, [Row("a", 1.0)])
    with pytest.raises(WrongRows, match=r"c: measured, but targets\.toml does not have it"):
        judge(wanted, [Row("a", 1.0), Row("b", 1.0), Row("c", 1.0)])
    with pytest.raises(WrongRows, match="twice"):
        judge(wanted, [Row("a", 1.0), Row("b", 1.0), Row("b", 2.0)])


def test_every_committed_row_belongs_to_a_group_and_every_group_to_a_module() -> None:
    groups = {target.group for target in targets.read()}
    assert groups == set(program.GROUPS)
    for group, module in program.GROUPS.items():
        assert callable(importlib.import_module(f"tests.bench.{module}").GROUPS[group])


def test_a_tiny_run_writes_the_committed_rows(tmp_path: Path) -> None:
    groups = ["fsync", "memory", "create", "delete", "expand"]
    output = tmp_path / "deep" / "results.json"
    arguments = ["--only", ",".join(groups), "--scale", "0.02", "--output", str(output)]
    done = subprocess.run([sys.executable, "-m", "tests.bench", *arguments], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    results = json.loads(output.read_text())
    assert [found["name"] for found in results] == [target.name for target in targets.read() if target.group in groups]
    for found in results:
        assert found.keys() == KEYS
        assert found["ours"] > 0
        assert isinstance(found["met"], bool)
        assert found["ratio"] is None or found["reference"] > 0
        assert found["name"] in done.stdout


def test_a_row_that_is_not_measured_fails_the_run(tmp_path: Path) -> None:
    wrong = tmp_path / "targets.toml"
    wrong.write_text(targets.FILE.read_text() + '\n[[row]]\nname = "never measured"\ngroup = "fsync"\nunit = "ms"\nrule = "context"\n')
    status = program.main(["--only", "fsync", "--scale", "0.02", "--targets", str(wrong), "--output", str(tmp_path / "out")])
    assert status == 2
    assert not (tmp_path / "out").exists()


def test_a_missed_target_fails_only_a_strict_run(tmp_path: Path) -> None:
    strict = tmp_path / "targets.toml"
    strict.write_text(targets.FILE.read_text().replace('rule = "context"', 'rule = "absolute"', 1))
    arguments = ["--only", "fsync", "--scale", "0.02", "--targets", str(strict), "--output", str(tmp_path / "out")]
    assert program.main(arguments) == 0
    assert [found["met"] for found in json.loads((tmp_path / "out").read_text())] == [False, True, True, True]
    assert program.main([*arguments, "--strict"]) == 1


def test_the_peers_figures_are_printed_and_documented():
    guide = (Path(__file__).parents[2] / "docs/benchmarks.md").read_text()
    listed = [line.strip(" |").split(" | ") for line in guide.partition("## Peers")[2].splitlines() if line.startswith("| ")][1:]
    shown = targets.peers()
    assert len(listed) == len(shown.splitlines()) - 1 > 3
    assert all(cell in shown for row in listed for cell in row)
