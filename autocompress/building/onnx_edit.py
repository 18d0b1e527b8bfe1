"""An ONNX graph that is being edited: new operators and tensors, and what reads what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


@final
class OnnxEdit:
    """One model.

    Attributes:
        nodes: operators by the names that they had in the beginning.
        values: tensors by theirs; what was put in the place of one, once `substitute` did.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model, self._graph = model, model.graph
        self.nodes = {str(node.name): node for node in self._graph}
        self.values = {str(value.name): value for value in self._graph.inputs}
        self.values |= {str(value.name): value for node in self._graph for value in node.outputs}
        self._count = 0

    def finish(self) -> ir.Model:
        """Drop what is no longer read, put operators into order, and give initializers short names."""
        for name in [name for name, value in self._graph.initializers.items() if not list(value.uses())]:
            del self._graph.initializers[name]
        self._graph.sort()
        for index, value in enumerate(list(self._graph.initializers.values())):
            value.name = f"w{index}"
        return self.model

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, int | str] | None = None,
        domain: str = "",
        outputs: int = 1,
    ) -> ir.Value:
        """A new operator; its first output."""
        node = ir.node(op_type, inputs, attributes=attributes or {}, domain=domain, num_outputs=outputs, name="")
        for value in node.outputs:
            self._count += 1
            value.name = f"v{self._count}"
        self._graph.append(node)
        return node.outputs[0]

    def as_float(self, value: ir.Value) -> ir.Value:
        """Cast to float32."""
        return self.node("Cast", [value], {"to": ir.DataType.FLOAT.value})

    def scalar(self, number: np.generic) -> ir.Value:
        """One initializer for each distinct scalar."""
        return self.shared(f"{number.dtype}:{number}", number)

    def initializer(self, array: NDArray[np.generic]) -> ir.Value:
        """A new constant tensor."""
        return self.register(ir.Tensor(np.ascontiguousarray(array)))

    def shared(self, key: str, array: NDArray[np.generic] | np.generic) -> ir.Value:
        """One constant tensor for all that ask for this key."""
        name = f"shared:{key}"
        return self._graph.initializers.get(name) or self.register(ir.Tensor(np.asarray(array)), name)

    def register(self, tensor: ir.TensorProtocol, name: str = "") -> ir.Value:
        """A new constant tensor of any type, also one that numpy does not have."""
        self._count += 1
        value = ir.Value(name=name or f"new:{self._count}", const_value=tensor)
        value.shape, value.type = tensor.shape, ir.TensorType(tensor.dtype)  # type: ignore[assignment]
        self._graph.register_initializer(value)
        return value

    def substitute(self, node: ir.Node, result: ir.Value, named: ir.Value | None = None) -> None:
        """Let everything that reads a node's output read another value.

        Args:
            named: output of the operator that takes over the node's name.
        """
        old = node.outputs[0]
        self.values[str(old.name)] = result
        for use in list(old.uses()):
            use.node.replace_input_with(use.idx, result)
        if old.is_graph_output():
            self.replace_output(old, result)
        self._graph.remove(node, safe=True)
        producer = named.producer() if named is not None else None
        if producer is not None:
            producer.name = node.name

    def replace_output(self, old: ir.Value, new: ir.Value) -> None:
        """Let the graph give another value, under the same name."""
        position = list(self._graph.outputs).index(old)
        new.shape, new.type = old.shape, old.type
        old.name, new.name = new.name, old.name
        self._graph.outputs[position] = new
