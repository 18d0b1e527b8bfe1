from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from autocompress.components import Capabilities
from autocompress.network.graph import BaseGraph, Layer, Op
from autocompress.network.placement import Placement, centred, has_codes, place, quantizable
from autocompress.policy import LayerPolicy, Policy

if TYPE_CHECKING:
    from tests.conftest import Tiny

INT8 = LayerPolicy("int8", 8)
CAPABILITIES = Capabilities(
    containers={"conv2d": (8,), "linear": (8,)},
    integer_ops=frozenset({"Add", "Mul", "MatMul", "Concat"}),
    passthrough_ops=frozenset({"MaxPool", "Reshape", "Split"}),
)


def layer(name: str, source: str, result: str, kind: str = "conv2d") -> Layer:
    return Layer(name, kind, f"node_{name}", f"{name}.weight", None, (4, 4, 1, 1), 0, 1, 16, source, result)


def graph(layers: Sequence[Layer], ops: Sequence[Op]) -> BaseGraph:
    return BaseGraph(Path(), b"", None, {layer.name: layer for layer in layers}, tuple(ops), ("output",), {})


def integer(*names: str) -> Policy:
    return Policy(dict.fromkeys(names, INT8))


def placed(layers: Sequence[Layer], ops: Sequence[Op], policy: Policy) -> Placement:
    return place(graph(layers, ops), policy, CAPABILITIES)


# --- the tiny network: stem -> inner -> outer, an Add around inner and outer, depthwise -> pointwise, pool, head ---


def tiny_place(tiny: Tiny, policy: Policy) -> Placement:
    return place(tiny.graph, policy, tiny.components.target.capabilities())


def test_without_quantizers_nothing_changes(tiny: Tiny) -> None:
    pruned = Policy({name: LayerPolicy(pruner="sparse", sparsity=0.5) for name in tiny.graph.layers})
    for policy in (Policy(), pruned):
        assert tiny_place(tiny, policy) == Placement(frozenset(), {}, {})


def test_all_layers_integer(tiny: Tiny) -> None:
    found = tiny_place(tiny, integer(*tiny.graph.layers))
    add, pool, flatten = tiny.graph.ops
    assert found.integer == {node.node for node in tiny.graph.layers.values()} | {add.name, pool.name, flatten.name}
    own = {name: name for name in tiny.graph.tensors if name != "output"}
    assert found.quantized == own | {flatten.output: pool.output}
    assert found.barriers == {}


def test_a_single_integer_layer_quantizes_its_ends_and_holds_back_its_reader(tiny: Tiny) -> None:
    inner, outer = tiny.graph.layers["inner.0"], tiny.graph.layers["outer.0"]
    found = tiny_place(tiny, integer("inner.0"))
    assert found.integer == {inner.node}
    assert found.quantized == {inner.input: inner.input, inner.output: inner.output}
    assert found.barriers == {outer.node: outer.input}


def test_what_fuses_with_a_convolution_reads_its_float_sums() -> None:
    layers = [layer("a", "input", "a"), layer("b", "s", "b")]
    swish = [Op("sigmoid", "Sigmoid", ("a",), "g"), Op("mul", "Mul", ("a", "g"), "s")]
    fusing = replace(CAPABILITIES, fused_ops=frozenset({"Sigmoid"}), integer_ops=frozenset({"Add", "Mul"}))
    found = place(graph(layers, swish), integer("a", "b"), fusing)
    assert found.quantized == {name: name for name in ("input", "s", "b")}
    assert found.integer == {"node_a", "node_b"}
    assert found.barriers == {}
    other = place(graph(layers, swish), integer("a", "b"), CAPABILITIES)
    assert set(other.quantized) == {"input", "a", "s", "b"}


def test_a_convolution_keeps_its_range_where_nothing_fuses_or_an_operator_is_asked_to_be_integer() -> None:
    layers = [layer("a", "input", "a"), layer("b", "s", "b")]
    ops = [Op("mul", "Mul", ("a", "a"), "s")]
    fusing = replace(CAPABILITIES, fused_ops=frozenset({"Sigmoid"}))
    assert "a" in place(graph(layers, ops), integer("a", "b"), fusing).quantized
    asked = Policy({"a": INT8, "b": INT8}, ops={"mul": "integer"})
    assert place(graph(layers, ops), asked, replace(fusing, fused_ops=frozenset({"Mul"}))).integer >= {"mul"}


def test_a_float_reader_behind_a_moving_operator_wants_the_sums() -> None:
    layers = [layer("a", "input", "a"), layer("b", "n", "b")]
    ops = [Op("flat", "Reshape", ("a",), "r"), Op("norm", "LayerNormalization", ("r",), "n")]
    wanting = replace(CAPABILITIES, fused_ops=frozenset({"LayerNormalization"}))
    assert set(place(graph(layers, ops), integer("a", "b"), wanting).quantized) == {"input", "n", "b"}
    assert set(place(graph(layers, ops), integer("a", "b"), CAPABILITIES).quantized) == {"input", "a", "r", "n", "b"}


JOINING = replace(CAPABILITIES, joining_ops=frozenset({"Concat"}), integer_ops=frozenset({"Add"}))


def test_tensors_that_are_joined_share_the_range_of_the_result() -> None:
    layers = [layer("a", "input", "x"), layer("b", "input", "y"), layer("c", "p", "output")]
    ops = [Op("cat", "Concat", ("x", "y"), "z"), Op("pool", "MaxPool", ("z",), "p")]
    found = place(graph(layers, ops), integer("a", "b", "c"), JOINING)
    assert found.quantized == {"input": "input", "output": "output", **dict.fromkeys("xyzp", "z")}
    assert found.integer >= {"cat", "pool"}
    refused = replace(integer("a", "b", "c"), ops={"cat": "float"})
    assert place(graph(layers, ops), refused, JOINING).quantized == {name: name for name in ("input", "x", "y", "p", "output")}
    assert place(graph(layers, ops), integer("a", "c"), JOINING).quantized == {n: n for n in ("input", "x", "p", "output")}


def test_what_is_joined_again_shares_one_range() -> None:
    layers = [layer("a", "input", "x"), layer("b", "input", "y"), layer("c", "z", "w")]
    ops = [Op("first", "Concat", ("x", "y"), "z"), Op("second", "Concat", ("z", "w"), "output")]
    found = place(graph(layers, ops), integer("a", "b", "c"), JOINING)
    assert found.quantized == {"input": "input", **dict.fromkeys((*"xyzw", "output"), "output")}
    assert found.integer >= {"first", "second"}
    assert found.ranges == {name: frozenset({name}) for name in ("input", "output")}  # the last one gives all values of all


def test_a_part_that_is_joined_again_brings_the_range_of_the_whole() -> None:
    """The result of the second joins half of the first one's; the other half has no place in its range."""
    layers = [layer("a", "input", "x"), layer("b", "input", "y"), layer("c", "right", "w"), layer("d", "more", "v")]
    ops = [
        Op("first", "Concat", ("x", "y"), "z"),
        Op("left", "Slice", ("z",), "left"),
        Op("right", "Slice", ("z",), "right"),
        Op("second", "Concat", ("left", "w"), "more"),
        Op("third", "Concat", ("more", "v"), "output"),
    ]
    able = replace(JOINING, passthrough_ops=frozenset({"Slice"}))
    found = place(graph(layers, ops), integer("a", "b", "c", "d"), able)
    shared = ("x", "y", "z", "left", "right", "w", "more", "v", "output")
    assert found.quantized == {"input": "input", **dict.fromkeys(shared, "output")}
    assert found.ranges == {"input": frozenset({"input"}), "output": frozenset({"z", "output"})}
    refused = replace(integer("a", "b", "c", "d"), ops={"second": "float"})
    assert place(graph(layers, ops), refused, able).ranges == {
        name: frozenset({name}) for name in ("input", "z", "w", "output")
    }
    precise = replace(integer("a", "b", "c", "d"), tensors={"z": 16})
    assert "second" not in place(graph(layers, ops), precise, able).integer


def test_an_operator_follows_its_inputs(tiny: Tiny) -> None:
    add, depthwise = tiny.graph.ops[0], tiny.graph.layers["depthwise.0"]
    both = tiny_place(tiny, integer("stem.0", "outer.0"))
    assert add.name in both.integer
    assert both.quantized[add.output] == add.output
    assert both.barriers[depthwise.node] == add.output
    one = tiny_place(tiny, integer("stem.0"))
    assert add.name not in one.integer
    assert add.output not in one.quantized
    assert add.name not in one.barriers  # its output is float: nothing tempts the runtime


def test_a_policy_can_keep_an_operator_in_float(tiny: Tiny) -> None:
    add, layers = tiny.graph.ops[0], tiny.graph.layers
    policy = Policy({"stem.0": INT8, "outer.0": INT8, "depthwise.0": INT8}, ops={add.name: "float"})
    found = tiny_place(tiny, policy)
    assert add.name not in found.integer
    held = {layers[name].node: layers[name].input for name in ("inner.0", "pointwise")}
    assert found.barriers == {add.name: add.inputs[0], **held}
    assert found.quantized[layers["depthwise.0"].input] == add.output  # for the layer that reads it
    without_reader = tiny_place(tiny, Policy({"stem.0": INT8, "outer.0": INT8}, ops={add.name: "float"}))
    assert add.output not in without_reader.quantized
    assert add.name not in without_reader.barriers


def test_properties_of_every_choice_of_integer_layers(tiny: Tiny) -> None:
    able = set(quantizable(tiny.graph, tiny.components.target.capabilities()))
    for chosen in product([False, True], repeat=len(tiny.graph.layers)):
        names = [name for name, wanted in zip(tiny.graph.layers, chosen, strict=True) if wanted]
        policy, found = integer(*names), tiny_place(tiny, integer(*names))
        assert set(found.quantized) <= able
        assert all(found.quantized[source] == source for source in found.quantized.values())
        for name, one in tiny.graph.layers.items():
            assert (one.node in found.integer) == has_codes(policy, name) == (name in names)
            if name in names:
                assert one.input in found.quantized
                assert one.output in found.quantized or one.output == "output"
            assert (one.node in found.barriers) == (one.input in found.quantized and name not in names)


# --- how a layer computes, and bits of single tensors ---


def test_only_a_static_layer_asks_for_quantized_tensors() -> None:
    layers = [layer("a", "input", "a"), layer("b", "a", "b", kind="linear"), layer("c", "b", "output", kind="linear")]
    policy = Policy({"a": INT8, "b": replace(INT8, activation="dynamic"), "c": replace(INT8, activation="float")})
    found = placed(layers, [], policy)
    assert found.modes == {"a": "static", "b": "dynamic", "c": "float"}
    assert found.integer == {"node_a", "node_b"}
    assert set(found.quantized) == {"input", "a"}  # the dynamic layer reads the rounded tensor of the one before it
    assert found.barriers == {}


def test_a_stored_layer_between_static_ones_is_held_back() -> None:
    layers = [layer("a", "input", "a"), layer("b", "a", "b"), layer("c", "b", "output")]
    found = placed(layers, [], Policy({"a": INT8, "b": replace(INT8, activation="float"), "c": INT8}))
    assert found.integer == {"node_a", "node_c"}
    assert found.barriers == {"node_b": "a"}


def test_a_tensor_in_more_bits_keeps_its_layers_in_float() -> None:
    layers = [layer("a", "input", "a"), layer("b", "a", "b", kind="linear"), layer("c", "b", "output", kind="linear")]
    for bits, quantized in ((16, {"input", "a", "b"}), (32, {"b"})):
        found = placed(layers, [], replace(integer("a", "b", "c"), tensors={"a": bits, "input": bits}))
        assert found.modes == {"a": "float", "b": "float", "c": "static"}
        assert found.integer == {"node_c"}
        assert set(found.quantized) == quantized
    wide_output = placed(layers, [], replace(integer("b"), tensors={"b": 32}))
    assert wide_output.modes == {"b": "static"}  # a product writes float
    assert set(wide_output.quantized) == {"a"}


def test_a_tensor_that_is_named_is_rounded_even_where_all_is_float() -> None:
    layers = [layer("a", "input", "a"), layer("b", "a", "b")]
    found = placed(layers, [], Policy(tensors={"a": 8}))
    assert (found.quantized, found.integer, found.barriers) == ({"a": "a"}, frozenset(), {"node_b": "a"})


def test_an_operator_needs_all_its_tensors_in_8_bits() -> None:
    layers = [layer("a", "input", "a"), layer("b", "input", "b"), layer("c", "sum", "output")]
    ops = [Op("add", "Add", ("a", "b"), "sum")]
    assert "add" in placed(layers, ops, integer("a", "b", "c")).integer
    for tensors in ({"sum": 16}, {"sum": 32}, {"a": 16}):
        assert "add" not in placed(layers, ops, replace(integer("a", "b", "c"), tensors=tensors)).integer


def test_a_policy_can_ask_for_an_integer_operator() -> None:
    layers = [layer("a", "input", "a", kind="linear"), layer("b", "input", "b", kind="linear")]
    ops = [Op("product", "MatMul", ("a", "b"), "c"), Op("add", "Add", ("c", "a"), "output")]
    silent = placed(layers, ops, integer("a", "b"))
    asked = placed(layers, ops, replace(integer("a", "b"), ops={"product": "integer"}))
    assert set(silent.quantized) == {"input"}
    assert set(asked.quantized) == {"input", "a", "b"}  # its output stays float: nothing integer reads it
    assert asked.integer - silent.integer == {"product"}
    assert asked.dynamic == frozenset()


def test_a_dynamic_product_finds_its_grids_itself() -> None:
    layers = [layer("a", "input", "a", kind="linear"), layer("b", "input", "b", kind="linear")]
    ops = [Op("product", "MatMul", ("a", "b"), "output")]
    found = placed(layers, ops, replace(integer("a"), ops={"product": "dynamic"}))
    assert found.dynamic == {"product"}
    assert found.integer == {"node_a", "product"}
    assert set(found.quantized) == {"input"}


# --- operators that only move values ---


def test_a_moved_tensor_keeps_the_range_of_its_source() -> None:
    layers = [layer("a", "input", "a"), layer("b", "flat", "output")]
    ops = [Op("pool", "MaxPool", ("a",), "pooled"), Op("reshape", "Reshape", ("pooled",), "flat")]
    found = placed(layers, ops, integer("a", "b"))
    assert found.quantized == {"input": "input", "a": "a", "pooled": "a", "flat": "a", "output": "output"}
    assert found.integer == {"node_a", "node_b", "pool", "reshape"}


def test_a_moved_tensor_has_a_range_of_its_own_when_its_source_is_float() -> None:
    layers = [layer("a", "input", "a"), layer("b", "pooled", "output")]
    found = placed(layers, [Op("pool", "MaxPool", ("a",), "pooled")], integer("b"))
    assert found.quantized == {"pooled": "pooled", "output": "output"}
    assert found.integer == {"node_b"}


def test_what_a_kernel_for_signed_codes_reads_is_centred() -> None:
    layers = [layer("a", "input", "a"), layer("b", "a", "b", kind="linear"), layer("c", "d", "output", kind="linear")]
    ops = [Op("product", "MatMul", ("b", "b"), "d")]
    wanting = replace(CAPABILITIES, centred=frozenset({"linear", "MatMul"}))
    policy = Policy(dict.fromkeys("abc", INT8), ops={"product": "integer"})
    found = place(graph(layers, ops), policy, wanting)
    assert centred(graph(layers, ops), found, wanting) == {"a", "b", "d"}
    assert centred(graph(layers, ops), found, CAPABILITIES) == set()
    stored = place(graph(layers, ops), integer("a"), wanting)
    assert centred(graph(layers, ops), stored, wanting) == set()


def test_what_a_kernel_for_unsigned_codes_reads_as_well_is_not_centred() -> None:
    layers = [layer("a", "input", "a"), layer("b", "moved", "b", kind="linear"), layer("c", "a", "c")]
    nets = graph(layers, [Op("move", "MaxPool", ("a",), "moved")])
    wanting = replace(CAPABILITIES, centred=frozenset({"linear"}))
    assert centred(nets, place(nets, integer("a", "b", "c"), wanting), wanting) == set()
    assert centred(nets, place(nets, integer("a", "b"), wanting), wanting) == {"a"}


REARRANGED = [layer("a", "input", "a"), layer("b", "flat", "b", kind="linear")], [Op("flatten", "Reshape", ("a",), "flat")]


def test_a_rearranged_tensor_is_quantized_where_its_values_come_from() -> None:
    found = placed(*REARRANGED, integer("b"))
    assert found.quantized == {"a": "a", "flat": "a"}
    assert found.integer == {"flatten", "node_b"}


@pytest.mark.parametrize(
    ("policy", "others"),
    [
        (integer("b"), [Op("other", "Sin", ("a",), "c")]),
        (integer("b"), [Op("flatten", "Reshape", ("a",), "output")]),
        (Policy({"b": INT8}, ops={"flatten": "float"}), []),
        (Policy({"b": INT8}, tensors={"flat": 8}), []),
        (Policy({"b": INT8}, tensors={"a": 32}), []),
    ],
    ids=["read_by_another", "rearranged_twice", "kept_float", "named", "source_kept_float"],
)
def test_a_rearranged_tensor_has_a_range_of_its_own(policy: Policy, others: list[Op]) -> None:
    layers, ops = REARRANGED
    assert placed(layers, [*ops, *others], policy).quantized == {"flat": "flat"}


def test_a_moving_operator_kept_in_float_separates_the_ranges() -> None:
    layers = [layer("a", "input", "a"), layer("b", "pooled", "output")]
    policy = Policy({"a": INT8, "b": INT8}, ops={"pool": "float"})
    found = placed(layers, [Op("pool", "MaxPool", ("a",), "pooled")], policy)
    assert found.quantized == {"input": "input", "a": "a", "pooled": "pooled", "output": "output"}
    assert "pool" not in found.integer


def test_each_part_of_a_split_keeps_the_range_of_its_source() -> None:
    layers = [layer("a", "input", "a"), layer("b", "left", "b")]
    ops = [Op("split", "Split", ("a",), "left", others=("right",)), Op("join", "Concat", ("right", "b"), "output")]
    found = placed(layers, ops, integer("a", "b"))
    assert found.quantized == {"input": "input", "a": "a", "left": "a", "right": "a", "b": "b"}
    assert found.integer == {"node_a", "node_b", "split"}
    ends = [replace(ops[0], others=("output",)), Op("join", "Concat", ("a", "b"), "joined")]
    assert "split" not in placed(layers, ends, integer("a", "b")).integer


def test_a_computing_operator_after_moved_tensors_has_its_own_range() -> None:
    layers = [layer("a", "input", "a"), layer("b", "joined", "output")]
    ops = [Op("pool", "MaxPool", ("a",), "pooled"), Op("concat", "Concat", ("a", "pooled"), "joined")]
    found = placed(layers, ops, integer("a"))
    assert found.quantized == {"input": "input", "a": "a", "pooled": "a", "joined": "joined"}
    assert found.barriers == {"node_b": "joined"}


def test_an_unknown_operator_stays_float_between_integer_layers() -> None:
    layers = [layer("a", "input", "a"), layer("b", "odd", "output")]
    found = placed(layers, [Op("erf", "Erf", ("a",), "odd")], integer("a", "b"))
    assert found.integer == {"node_a", "node_b"}
    assert found.quantized["odd"] == "odd"
    assert found.barriers == {}


# --- what a runtime would make integer by itself ---


@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose", "MatMul", "Gemm"])
def test_a_weight_that_is_no_layer_is_held_back_between_integer_layers(op_type: str) -> None:
    layers = [layer("a", "input", "a"), layer("b", "c", "output")]
    ops = [Op("shared", op_type, ("a",), "c", constant=True)]
    assert placed(layers, ops, integer("a", "b")).barriers == {"shared": "a"}
    assert placed(layers, ops, integer("a")).barriers == {}


def test_a_runtime_that_leaves_float_operators_alone_needs_no_barrier(tiny: Tiny) -> None:
    policy, capabilities = integer("inner.0", "depthwise.0"), tiny.components.target.capabilities()
    needed = place(tiny.graph, policy, capabilities)
    assert needed.barriers
    assert place(tiny.graph, policy, replace(capabilities, barriers=False)) == replace(needed, barriers={})


def test_an_operator_with_a_constant_is_float_but_needs_no_barrier() -> None:
    layers = [layer("a", "input", "a"), layer("b", "half", "output")]
    ops = [Op("mul", "Mul", ("a",), "half", constant=True)]
    found = placed(layers, ops, integer("a", "b"))
    assert "mul" not in found.integer
    assert found.barriers == {}
    assert "half" not in placed(layers, ops, integer("a")).quantized


# --- the model's output ---


def test_the_output_is_quantized_for_a_convolution_only() -> None:
    conv = placed([layer("a", "input", "output")], [], integer("a"))
    linear = placed([layer("a", "input", "output", kind="linear")], [], integer("a"))
    assert set(conv.quantized) == {"input", "output"}
    assert set(linear.quantized) == {"input"}
    assert conv.integer == linear.integer == {"node_a"}


def test_an_operator_that_gives_the_output_stays_float() -> None:
    found = placed([layer("a", "input", "a")], [Op("reshape", "Reshape", ("a",), "output")], integer("a"))
    assert "reshape" not in found.integer
    assert "output" not in found.quantized
