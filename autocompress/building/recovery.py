"""What a recovery is given: a finalist, the module that computes the same, and the way back from a module to tensors."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from autocompress.building.trainable import TrainableModule, constrained
from autocompress.building.twin import module_twin
from autocompress.components import Components, CompressedLayer, Quantizer
from autocompress.display.progress import Progress
from autocompress.errors import ModelError
from autocompress.network.channels import ChannelGroup
from autocompress.network.exporting import export
from autocompress.network.graph import BaseGraph
from autocompress.policy import LayerPolicy, Policy
from autocompress.task import Task
from autocompress.tensors.calibration import Calibration
from autocompress.tensors.compress import CompressedModel, LayerDatabase, file_cuts
from autocompress.tensors.folding import folded
from autocompress.tensors.module_weights import module_of, oriented
from autocompress.tensors.stats import LayerStats


@dataclass(frozen=True)
class Recoverable:
    """A finalist, and what is needed to make it better.

    Attributes:
        policy: its decisions; a recovery keeps them.
        compressed: its tensors.
        folder: for files that a recovery needs; removed at the end.
        seconds: what is left of the search's time for the recovery; one with a time limit keeps to the lesser of both.
    """

    task: Task
    graph: BaseGraph
    groups: Mapping[str, ChannelGroup]
    components: Components
    calibration: Calibration
    database: LayerDatabase
    policy: Policy
    compressed: CompressedModel
    folder: Path
    seed: int
    progress: Progress
    seconds: float = math.inf

    def stats(self, layer: str) -> LayerStats:
        """Calibration statistics of a whole layer of the FP32 model."""
        return self.calibration.stats(self.graph.layers[layer])

    def cuts(self, layer: str) -> Mapping[int, Tensor]:
        """Axis of a layer's weight to the indices that are left."""
        return file_cuts(self.graph, self.groups, self.compressed.kept).get(layer, {})

    def quantizer(self, layer: str) -> Quantizer | None:
        """What quantizes a layer's weight."""
        name = self.policy.layers.get(layer, LayerPolicy()).quantizer
        return None if name is None else self.components.quantizers[name]

    def twin(self) -> nn.Module:
        """A module that computes what the file computes, quantized activations included; in eval mode."""
        return self._twin(self.policy, self.compressed)

    def folded(self) -> nn.Module:
        """The twin with the file's own weights and biases in its layers; the batch norm that they contain is gone.

        Raises:
            ModelError: batch norm is not part of the layers of the file.
        """
        return self._folded(self.twin(), self.compressed)

    def unquantized(self) -> Mapping[str, CompressedLayer]:
        """Every layer before its weights were rounded, but without what was removed from it."""
        return _complete(self.graph, self.database.compress(_without_quantizers(self.policy)))

    def original(self) -> nn.Module:
        """What the candidate should compute, folded as well: the FP32 model, or what is left of it where channels were cut."""
        policy = Policy(channels=self.policy.channels)
        compressed = self.database.compress(policy)
        return self._folded(self._twin(policy, compressed), compressed)

    def oriented(self, layer: str, tensor: Tensor) -> Tensor:
        """A tensor of the shape of the file's weight in the shape of the module's, and back."""
        return oriented(tensor, self.graph.layers[layer], module_of(self.task.model, layer))

    def trainable(self, *, activations: bool = True) -> TrainableModule:
        """A module to fine-tune: channels are cut, removed weights stay 0, weights are used as their grid has them.

        Args:
            activations: whether activations are rounded as well.
        """
        unquantized = _without_quantizers(self.policy)
        module = self._twin(unquantized, self.database.compress(unquantized))
        return constrained(self, module, activations=activations)

    def rebuild(self, module: TrainableModule) -> CompressedModel:
        """The tensors of the file that the fine-tuned module gives: exported, calibrated and compressed by the same policy.

        Raises:
            ModelError: training changed something that is not a weight or bias of a layer of the file.
        """
        task = copy.copy(self.task)
        task.model = module.finished().eval()
        graph = export(task.model, task.example_input, self.folder / "recovered.onnx")
        _check_same(self.graph, graph)
        calibration = Calibration(task, graph, self.components, self.folder, self.seed)
        database = LayerDatabase(graph, calibration, self.components, {}, self._masks(graph))
        compressed = database.compress(replace(self.policy, channels={}))
        return CompressedModel(_complete(graph, compressed), compressed.ranges, self.compressed.kept)

    def _folded(self, module: nn.Module, compressed: CompressedModel) -> nn.Module:
        return folded(self.graph, module, _complete(self.graph, compressed), self.task.example_input[:1])

    def _twin(self, policy: Policy, compressed: CompressedModel) -> nn.Module:
        capabilities = self.components.target.capabilities()
        return module_twin(self.graph, self.task.model, self.groups, policy, compressed, capabilities)

    def _masks(self, graph: BaseGraph) -> dict[str, Tensor]:
        pruned = [name for name, layer in self.compressed.layers.items() if layer.mask is not None]
        return {name: torch.from_numpy(graph.initializers[graph.layers[name].weight] != 0) for name in pruned}


def _without_quantizers(policy: Policy) -> Policy:
    layers = {name: replace(layer, quantizer=None, bits=LayerPolicy().bits) for name, layer in policy.layers.items()}
    return replace(policy, layers=layers)


def _complete(graph: BaseGraph, compressed: CompressedModel) -> dict[str, CompressedLayer]:
    """All layers, those that were not compressed as the graph has them."""
    return {name: compressed.layers.get(name, _stored(graph, name)) for name in graph.layers}


def _stored(graph: BaseGraph, name: str) -> CompressedLayer:
    """A layer as the graph has it."""
    layer = graph.layers[name]
    bias = None if layer.bias is None else torch.from_numpy(graph.initializers[layer.bias].copy())
    return CompressedLayer(torch.from_numpy(graph.initializers[layer.weight].copy()), bias)


def _check_same(original: BaseGraph, recovered: BaseGraph) -> None:
    """The two graphs must differ in the layers' tensors only, because those are all that is taken over."""
    if _wiring(original) != _wiring(recovered):
        raise ModelError("the fine-tuned module exports to another graph than the original; it cannot be taken over")


def _wiring(graph: BaseGraph) -> list[tuple[str, ...]]:
    layers = [(layer.name, layer.node, layer.input, layer.output) for layer in graph.layers.values()]
    return [*layers, *((op.name, op.op_type, *op.inputs, *op.outputs) for op in graph.ops)]
