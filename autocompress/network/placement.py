"""Which operators compute in integers, and which tensors are quantized for them.

A layer whose weight has codes computes in integers, statically where its input (and, but for a matrix product, its output) has
a grid of 8 bits, dynamically where its input's grid is found at run time; else in float with the values of the codes. An
operator without weights follows its inputs. A tensor has one quantizer, shared by all its readers, so precision changes only
where it must. Tensors that are joined share one; one that is only rearranged is quantized before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from autocompress.components import Capabilities
from autocompress.errors import PolicyError
from autocompress.network.graph import BaseGraph, Op
from autocompress.policy import FLOAT_BITS, INTEGER_BITS, TENSOR_BITS, Activation, Policy

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that a runtime may make integer by itself, also when their weight is shared and they are no layer."""

HARD = frozenset({"HardSigmoid", "HardSwish"})
"""Operators that are integer only where the file writes them as others: a runtime leaves them as they are."""

PRODUCT = "MatMul"
"""A product of two activations."""

REARRANGING = frozenset({"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators whose output has the very values of the input."""


@dataclass(frozen=True)
class Placement:
    """The consequences of a policy for the graph.

    Attributes:
        integer: names of the nodes that compute in integers.
        quantized: activation tensor to the tensor whose scale it uses (itself, unless an operator only moved values).
        barriers: node that stays float to its quantized input; the runtime would otherwise make the node integer.
        modes: layer whose weight has codes to how it computes.
        dynamic: names of the products of two activations that find both grids at run time.
        covered: tensor whose scale others use, after operators joined them, to the tensors whose ranges its own has to cover.
    """

    integer: frozenset[str]
    quantized: dict[str, str]
    barriers: dict[str, str]
    modes: dict[str, Activation] = field(default_factory=dict)
    dynamic: frozenset[str] = frozenset()
    covered: dict[str, frozenset[str]] = field(default_factory=dict)

    @property
    def ranges(self) -> dict[str, frozenset[str]]:
        """Tensor whose scale is used to the tensors whose ranges that covers, itself among them."""
        return {source: self.covered.get(source, frozenset({source})) for source in self.quantized.values()}


def place(graph: BaseGraph, policy: Policy, capabilities: Capabilities) -> Placement:
    """Work out the placement of a policy on a graph."""
    ends = _ends(graph, capabilities)
    modes = {name: _mode(name, policy, ends[name]) for name in graph.layers if has_codes(policy, name)}
    dynamic = frozenset(op.name for op in graph.ops if op.op_type == PRODUCT and policy.ops.get(op.name) == "dynamic")
    integer = {graph.layers[name].node for name, mode in modes.items() if mode != "float"} | dynamic
    static = [tensor for name, mode in modes.items() if mode == "static" for tensor in ends[name]]
    moved = _moved(graph, policy, capabilities)
    needed = (_origin(name, moved) for name in (*static, *_read_by_asked(graph, policy, capabilities)))
    quantized = {name: name for name in (*needed, *_named(policy))}
    covered: dict[str, frozenset[str]] = {}
    for op in graph.ops:
        if op.op_type in capabilities.joining_ops and _joins(op, policy, quantized):
            integer.add(op.name)
            _join(op, quantized, covered)
        elif _op_is_integer(op, policy, capabilities, quantized):
            integer.add(op.name)
            if op.op_type in capabilities.passthrough_ops:
                for output in op.outputs:
                    _share(quantized, output, quantized[op.inputs[0]])
            elif op.op_type != PRODUCT:
                _share(quantized, op.output, op.output)
    barriers = _barriers(graph, capabilities, integer, quantized) if capabilities.barriers else {}
    return Placement(frozenset(integer), quantized, barriers, modes, dynamic, covered)


def centred(graph: BaseGraph, placement: Placement, capabilities: Capabilities) -> set[str]:
    """Tensors whose grid should be symmetric around 0: an integer kernel that reads it wants that, and no layer's does not."""
    static = [layer for name, layer in graph.layers.items() if placement.modes.get(name) == "static"]
    wanted = {layer.input for layer in static if layer.kind in capabilities.centred}
    unwanted = {layer.input for layer in static if layer.kind not in capabilities.centred}
    for op in graph.ops:
        if op.op_type in capabilities.centred and op.name in placement.integer - placement.dynamic:
            wanted.update(op.inputs)
    return {placement.quantized[name] for name in wanted} - {placement.quantized[name] for name in unwanted}


def check_decisions(graph: BaseGraph, policy: Policy, capabilities: Capabilities) -> None:
    """Refuse what the target cannot compute.

    Raises:
        PolicyError: an activation, an operator's precision or a tensor's bits that are not possible, or of an unknown name.
    """
    for name, layer in policy.layers.items():
        if layer.quantizer is not None and name in graph.layers:
            _require(f"layer {name}: activation", layer.activation, capabilities.modes(graph.layers[name].kind))
    ops = {op.name: _precisions(op, capabilities) for op in graph.ops}
    for name, precision in policy.ops.items():
        _require("operator", name, tuple(ops))
        _require(f"operator {name}: precision", precision, ops[name])
    known = quantizable(graph, capabilities) if policy.tensors or policy.observers else ()
    for name in (*policy.tensors, *policy.observers):
        _require("tensor", name, known)
    for name, bits in policy.tensors.items():
        _require(f"tensor {name}: bits", bits, TENSOR_BITS)


def _require(what: str, given: object, possible: Sequence[object]) -> None:
    if given not in possible:
        raise PolicyError(f"policy: {what} {given}: this target offers {', '.join(map(str, possible)) or 'none'} here")


def _precisions(op: Op, capabilities: Capabilities) -> tuple[str, ...]:
    follows = op.op_type in capabilities.passthrough_ops | capabilities.joining_ops
    integer = follows or has_kernel(op, capabilities)
    dynamic = op.op_type == PRODUCT and "dynamic" in capabilities.modes("linear") and not op.constant
    return ("float", *(["integer"] if integer else []), *(["dynamic"] if dynamic else []))


def has_codes(policy: Policy, layer: str) -> bool:
    """Whether the policy quantizes the layer's weight."""
    return layer in policy.layers and policy.layers[layer].quantizer is not None


def _mode(layer: str, policy: Policy, ends: Sequence[str]) -> Activation:
    """What the policy asks, unless it wants a tensor that a static layer needs in 8 bits in more."""
    wanted = policy.layers[layer].activation
    return "float" if wanted == "static" and not all(_is_short(name, policy) for name in ends) else wanted


def _is_short(tensor: str, policy: Policy) -> bool:
    return policy.tensors.get(tensor, INTEGER_BITS) == INTEGER_BITS


def _named(policy: Policy) -> list[str]:
    return [name for name, bits in policy.tensors.items() if bits < FLOAT_BITS]


def _read_by_asked(graph: BaseGraph, policy: Policy, capabilities: Capabilities) -> Iterator[str]:
    """Tensors that operators which the policy names want quantized."""
    for op in graph.ops:
        if policy.ops.get(op.name) == "integer" and has_kernel(op, capabilities):
            yield from (name for name in op.inputs if _is_short(name, policy))


def _moved(graph: BaseGraph, policy: Policy, capabilities: Capabilities) -> dict[str, str]:
    """Rearranged tensor to what it was, where nothing else reads that: quantized there, a kernel writes bytes to rearrange."""
    readers = Counter(name for op in graph.ops for name in op.inputs)
    readers.update(name for layer in graph.layers.values() for name in layer.activations)
    readers.update(graph.outputs)
    return {op.output: op.inputs[0] for op in graph.ops if readers[op.inputs[0]] == 1 and _moves(op, policy, capabilities)}


def _moves(op: Op, policy: Policy, capabilities: Capabilities) -> bool:
    able = op.op_type in REARRANGING & capabilities.passthrough_ops
    short = op.output not in policy.tensors and _is_short(op.inputs[0], policy)
    return able and short and policy.ops.get(op.name, "integer") == "integer"


def _origin(tensor: str, moved: Mapping[str, str]) -> str:
    while tensor in moved:
        tensor = moved[tensor]
    return tensor


def quantizable(graph: BaseGraph, capabilities: Capabilities) -> tuple[str, ...]:
    """Tensors that some policy may quantize: those need a range."""
    able = capabilities.integer_ops | capabilities.passthrough_ops | capabilities.joining_ops
    ops = [op for op in graph.ops if op.op_type in able]
    names = [name for layer in graph.layers.values() for name in (*layer.activations, layer.output)]
    return tuple(dict.fromkeys([*names, *(name for op in ops for name in (*op.inputs, *op.outputs))]))


def _ends(graph: BaseGraph, capabilities: Capabilities) -> dict[str, tuple[str, ...]]:
    """The tensors that each layer needs quantized when it is static.

    A matrix product writes float directly where no integer operator reads it; a convolution only to what wants its sums.
    """
    fused = set[str]()
    for op in reversed(graph.ops):
        if op.op_type in capabilities.fused_ops or (op.op_type in REARRANGING and op.output in fused):
            fused.update(op.inputs)
    return {
        name: (layer.input,) if layer.kind == "linear" or layer.output in fused else (layer.input, layer.output)
        for name, layer in graph.layers.items()
    }


def _op_is_integer(op: Op, policy: Policy, capabilities: Capabilities, quantized: Mapping[str, str]) -> bool:
    able = has_kernel(op, capabilities) or op.op_type in capabilities.passthrough_ops
    ready = all(name in quantized and _is_short(quantized[name], policy) for name in op.inputs)
    ready = ready and all(name != "output" and _is_short(name, policy) for name in op.outputs)
    return able and ready and policy.ops.get(op.name, "integer") == "integer"


def _joins(op: Op, policy: Policy, quantized: Mapping[str, str]) -> bool:
    """Whether its inputs, and whatever shares a scale with them, may take the output's."""
    ready = all(name in quantized for name in op.inputs)
    short = ready and all(_is_short(quantized.get(name, name), policy) for name in (*op.inputs, op.output))
    return short and policy.ops.get(op.name, "integer") == "integer"


def _join(op: Op, quantized: dict[str, str], covered: dict[str, frozenset[str]]) -> None:
    """One scale for the inputs, the output and what shares theirs. The output holds its inputs' values, not their sources'."""
    sources = {quantized[name] for name in op.inputs}
    inner = frozenset[str]().union(*(covered.pop(source, {source}) for source in sources)) - set(op.inputs)
    if inner:
        covered[op.output] = inner | {op.output}
    joined = [name for name, source in quantized.items() if source in sources]
    quantized |= dict.fromkeys((*joined, op.output), op.output)


def has_kernel(op: Op, capabilities: Capabilities) -> bool:
    """Whether the target can compute the operator in integers, on a range of its own."""
    return op.op_type in capabilities.integer_ops and not op.constant


def _barriers(
    graph: BaseGraph, capabilities: Capabilities, integer: Collection[str], quantized: Collection[str]
) -> dict[str, str]:
    barriers = {layer.node: name for layer in graph.layers.values() for name in layer.activations if name in quantized}
    for op in graph.ops:
        tempting = (has_kernel(op, capabilities) and op.op_type not in HARD) or op.op_type in WEIGHTED
        if tempting and all(name in quantized for name in (*op.inputs, op.output)):
            barriers[op.name] = op.inputs[0]
    return {node: tensor for node, tensor in barriers.items() if node not in integer}


def _share(quantized: dict[str, str], output: str, source: str) -> None:
    """Give a tensor a quantizer. One that a reader already asked for keeps its own range only if the operator computes."""
    previous = quantized.get(output)
    quantized[output] = source
    if previous == output and source != output:
        for name in [name for name, used in quantized.items() if used == output]:
            quantized[name] = source
