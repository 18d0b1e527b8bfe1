"""What leaves the space, for which goal, and what stays because it may help."""

from __future__ import annotations

from dataclasses import replace

import pytest
from autocompress_plugins.affine import Int4, Int8
from autocompress_plugins.sparse import Sparse

from autocompress import Budget, LayerPolicy
from autocompress.choices.options import build_space
from autocompress.choices.space import SearchSpace
from autocompress.choices.space_settings import SpaceSettings
from autocompress.choices.worthwhile import Uses, worthwhile
from autocompress.network.graph import Op
from autocompress.network.regions import RegionPolicy
from autocompress.probing.findings import Case, Finding, Findings
from autocompress.record import Objective
from tests.choices.test_space import BOTH, GRAPH, NO_SCORES, components
from tests.probing.test_findings import case

FLOAT, INT8, INT4 = LayerPolicy(), LayerPolicy("int8", 8), LayerPolicy("int4", 4)
CONVOLUTIONS = ("stem", "block.conv")
TIME, SIZE, BOTH_USES = Uses(True, False), Uses(False, True), Uses(True, True)


def row(encoding: str, *cases: Case, mode: str = "static", kind: str = "conv2d") -> Finding:
    return Finding("layer", kind, mode, encoding, 4 if encoding.endswith("4") else 8, cases)


def rows(int4: float = 0.5, spread: float = 0.005) -> list[Finding]:
    """INT4 as fast as INT8 on the small network, and so fast on the large one."""
    small = case(0.8, 0.4)
    fast = [row(name, small, case(0.5, 0.3, spread)) for name in ("int8", "sparse-int8", "sparse-int4", "codebook4")]
    return [*fast, row("int4", small, case(int4, 0.2, spread))]


def kept(findings: list[Finding], uses: Uses, whole: SearchSpace | None = None) -> SearchSpace:
    space = whole or build_space(GRAPH, BOTH, {}, SpaceSettings(sparsities=[]), NO_SCORES)
    return worthwhile(space, GRAPH, BOTH, Findings("k", "cpu", "r", tuple(findings)), uses)[0]


def of_convolutions(space: SearchSpace) -> tuple[LayerPolicy, ...]:
    first, second = (space.layers[name] for name in CONVOLUTIONS)
    assert first == second
    return first


def test_what_is_only_smaller_goes_where_bytes_do_not_matter() -> None:
    found = kept(rows(), TIME)
    assert of_convolutions(found) == (FLOAT, INT8)
    assert found.layers["head"] == (FLOAT, INT8, INT4)  # nothing is known of linear layers


@pytest.mark.parametrize("uses", [SIZE, BOTH_USES])
def test_what_is_smaller_stays_where_bytes_matter(uses: Uses) -> None:
    assert of_convolutions(kept(rows(), uses)) == (FLOAT, INT8, INT4)


@pytest.mark.parametrize(
    "findings",
    [rows(int4=0.4), rows(spread=0.02), [entry for entry in rows() if entry.encoding != "codebook4"], []],
    ids=["faster on the large network only", "uncertain", "one way unknown", "nothing known"],
)
def test_what_may_be_faster_stays(findings: list[Finding]) -> None:
    assert of_convolutions(kept(findings, TIME)) == (FLOAT, INT8, INT4)


def test_a_goal_without_time_and_bytes_keeps_everything() -> None:
    assert of_convolutions(kept(rows(), Uses(False, False))) == (FLOAT, INT8, INT4)


def test_integers_stay_where_they_may_save_changes_of_precision() -> None:
    """Depthwise layers alone are twice as slow in INT8 on one CPU, where a mobile net gains by them."""
    slow = [row(name, case(1.4, 0.7), case(2.2, 0.7)) for name in ("int8", "int4", "codebook4")]
    assert of_convolutions(kept(slow, TIME)) == (FLOAT, INT8)


def test_slower_than_float_goes_and_the_reason_is_told() -> None:
    sizes = {"int8": (0.4, 0.3), "int4": (0.2, 0.15), "codebook4": (0.2, 0.15)}
    slow = [row(name, case(1.3, small), case(1.2, large), mode="float") for name, (small, large) in sizes.items()]
    settings = SpaceSettings(sparsities=[], activations=["float"])
    space = build_space(GRAPH, BOTH, {}, settings, NO_SCORES)
    found, notes = worthwhile(space, GRAPH, BOTH, Findings("k", "cpu", "r", tuple(slow)), TIME)
    assert of_convolutions(found) == (FLOAT,)
    sentence = "size only here, slower than float here: not searched, the goal asks for time only (2 options)"
    assert f"INT8 conv2d, in float: {sentence}" in notes
    assert "INT4 conv2d, in float: size only here: not searched, the goal asks for time only (2 options)" in notes


def test_sparse_codes_go_with_their_structure_where_only_time_matters() -> None:
    parts = components([Int8(), Int4()], Sparse())
    space = build_space(GRAPH, parts, {}, SpaceSettings(sparsities=[0.5], structures=["unstructured", "2:4"]), NO_SCORES)
    assert len(space.layers["stem"]) > 3
    found, _ = worthwhile(space, GRAPH, parts, Findings("k", "cpu", "r", tuple(rows())), TIME)
    assert of_convolutions(found) == (FLOAT, INT8)


def test_wrong_sums_that_nothing_mends_are_not_searched() -> None:
    wrong = [replace(entry, error=50.0, narrow_error=50.0) for entry in rows()]
    space = build_space(GRAPH, BOTH, {}, SpaceSettings(sparsities=[]), NO_SCORES)
    found, notes = worthwhile(space, GRAPH, BOTH, Findings("k", "cpu", "r", tuple(wrong)), Uses(False, False))
    assert of_convolutions(found) == (FLOAT,)
    assert "conv2d, static: wrong sums on this device, not searched" in notes


def test_wrong_sums_that_narrow_weights_mend_are_told() -> None:
    lost = [replace(entry, error=50.0, narrow_error=0.5) for entry in rows()]
    space = build_space(GRAPH, BOTH, {}, SpaceSettings(sparsities=[]), NO_SCORES)
    found, notes = worthwhile(space, GRAPH, BOTH, Findings("k", "cpu", "r", tuple(lost)), Uses(False, False))
    assert found == space
    assert notes == ["conv2d: integer kernels lose sums on this device, weights have at most 7 bits there"]


@pytest.mark.parametrize(
    ("ratio", "uses", "left"),
    [
        (1.4, TIME, ["follow", "float"]),
        (1.4, SIZE, ["follow", "float", "integer"]),
        (1.0, TIME, ["follow", "float", "integer"]),
    ],
)
def test_an_operator_slower_in_integers(ratio: float, uses: Uses, left: list[str]) -> None:
    graph = replace(GRAPH, ops=(Op("n1", "Sigmoid", ("a",), "b"),))
    options = (RegionPolicy(), RegionPolicy("float", ("n1",)), RegionPolicy("integer", ("n1",)))
    space = SearchSpace({"stem": (FLOAT, INT8)}, {}, {"Sigmoid.n1": options})
    findings = Findings("k", "cpu", "r", (Finding("op", "Sigmoid", "integer", "", 0, (case(ratio), case(ratio))),))
    found, _ = worthwhile(space, graph, BOTH, findings, uses)
    assert [option.precision for option in found.ops["Sigmoid.n1"]] == left


def test_a_part_knows_its_whole() -> None:
    space = build_space(GRAPH, BOTH, {}, SpaceSettings(sparsities=[]), NO_SCORES)
    found = kept(rows(), TIME, space)
    assert found.digest != space.digest
    assert found.family == space.digest == space.family


@pytest.mark.parametrize(
    ("objective", "budget", "uses"),
    [
        ("accuracy", Budget(accuracy_drop=0.01), Uses(False, False)),
        ("accuracy", Budget(latency_ratio=0.5), TIME),
        ("accuracy", Budget(latency_ms=3, size_ratio=0.3), BOTH_USES),
        ("latency", Budget(accuracy_drop=0.01), TIME),
        ("latency", Budget(size_bytes=1e6), BOTH_USES),
        ("size", Budget(), SIZE),
        ("pareto", Budget(), BOTH_USES),
    ],
)
def test_what_a_goal_asks_for(objective: Objective, budget: Budget, uses: Uses) -> None:
    assert Uses.of(objective, budget) == uses
