"""Verdicts from figures, and the file that keeps them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autocompress.probing.findings import Case, Finding, Findings


def case(ratio: float, size: float = 1.0, spread: float = 0.01) -> Case:
    return Case(ratio, ratio - spread, ratio + spread, size)


def conv(encoding: str, *cases: Case, mode: str = "static", **others: Any) -> Finding:
    return Finding("layer", "conv2d", mode, encoding, 4 if encoding.endswith("4") else 8, cases, **others)


INT8 = conv("int8", case(0.8, 0.4), case(0.5, 0.3), error=0.6)


def found(*rows: Finding) -> Findings:
    return Findings("key", "cpu", "runtime 1", rows)


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (INT8, "time and size"),
        (conv("int4", case(0.8, 0.2), case(0.5, 0.15)), "size only here"),
        (conv("int4", case(0.8, 0.2), case(0.4, 0.15)), "time and size"),
        (conv("int4", case(1.6, 0.2), case(0.7, 0.15)), "size only here, slower than INT8 here"),
        (conv("int4", case(1.6, 0.2), case(0.51, 0.15)), "size only here"),
        (conv("int4", case(1.6, 0.4), case(0.7, 0.3)), "slower than INT8 here"),
        (conv("int8", case(1.3, 1.0), mode="dynamic"), "slower than float here"),
        (conv("int8", case(1.3, 0.3), mode="dynamic"), "size only here, slower than float here"),
        (conv("int8", case(0.99), mode="float"), "no gain here"),
        (conv("int8", case(0.5, spread=0.6), mode="float"), "no gain here"),
        (conv("int8", mode="float"), "does not run here"),
        (replace(INT8, error=40.0, narrow_error=0.7), "wrong sums; right with 7-bit weights"),
        (replace(INT8, error=40.0, narrow_error=40.0), "wrong sums"),
        (Finding("op", "Sigmoid", "integer", "", 0, (case(1.2), case(1.4))), "slower than float here"),
        (Finding("op", "Add", "integer", "", 0, (case(1.01), case(0.7))), "time"),
    ],
)
def test_verdict(row: Finding, verdict: str) -> None:
    assert found(INT8, row).verdict(row) == verdict


def test_a_file_is_read_back_for_the_same_device_only(tmp_path: Path) -> None:
    findings = found(INT8, conv("int4"))
    findings.save(tmp_path / "deep" / "probe.json")
    assert Findings.load(tmp_path / "deep" / "probe.json", "key") == findings
    assert Findings.load(tmp_path / "deep" / "probe.json", "other") is None
    assert Findings.load(tmp_path / "none.json", "key") is None
    (tmp_path / "torn.json").write_text((tmp_path / "deep" / "probe.json").read_text(encoding="utf-8")[:99], encoding="utf-8")
    assert Findings.load(tmp_path / "torn.json", "key") is None


def test_what_is_known_does_not_change() -> None:
    again = replace(INT8, cases=(case(2.0), case(2.0)))
    other = replace(INT8, name="linear")
    assert found(INT8).joined([again, other]).rows == (INT8, other)


def test_kinds_that_lose_sums() -> None:
    lost = replace(INT8, error=40.0, narrow_error=0.7)
    never = replace(INT8, name="linear", mode="dynamic", error=40.0, narrow_error=40.0)
    assert (found(INT8).saturating(), found(INT8).broken()) == ([], set())
    assert (found(lost, never).saturating(), found(lost, never).broken()) == (["conv2d"], {("linear", "dynamic")})


def test_table_has_a_line_for_each_row() -> None:
    lines = found(INT8, conv("sparse-int4", case(1.0, 0.1), case(1.0, 0.1))).table().splitlines()
    assert len(lines) == 3
    assert " ".join(lines[1].split()) == "INT8 conv2d, static 0.80±0.01 0.50±0.01 size 0.30 error 0.6 time and size"
    assert lines[2].startswith("sparse INT4 conv2d, static")
