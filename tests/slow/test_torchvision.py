"""torchvision's classifiers with random weights pass through a search: they export, compress, and the file is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from autocompress import Budget, SearchResult, Task, search
from autocompress.accuracy.evaluation import snr_db

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PIXELS, CLASSES, PART = 64, 20, 8
"""Small images, and few of them in each set: what is tested does not depend on them."""

QUICK = [
    "tracking=[]",
    "sampler=random",
    "timing.seconds=0.05",
    "timing.precision=1",
    "sensitivity.seconds=0.05",
    "search.finalists=1",
    "trial.load_processes=1",
]

NETS: dict[str, dict[str, Any]] = {
    "resnet18": {},
    "mobilenet_v2": {},
    "mobilenet_v3_small": {},  # hard-swish, squeeze-excite
    "efficientnet_b0": {},  # silu, squeeze-excite
    "shufflenet_v2_x1_0": {},  # channel split and shuffle
    "squeezenet1_1": {},  # concatenation, a convolution as classifier
    "vit_b_16": {"image_size": PIXELS},  # attention, layer norm, a class token
    "swin_t": {},  # shifted windows, position bias
    "convnext_tiny": {},  # layer scale, channels last
}
"""Name to what its builder needs."""


def random_net(name: str, images: Tensor) -> nn.Module:
    """A net whose outputs depend on the image: batch norm knows its inputs, and no last layer is zero."""
    torch.manual_seed(0)
    net: nn.Module = models.get_model(name, weights=None, num_classes=CLASSES, **NETS[name])
    linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
    if linear:
        nn.init.normal_(linear[-1].weight, std=0.1)
    with torch.no_grad():
        net.train()
        for _ in range(3):
            net(images)
    return net.eval()


def parts(images: Tensor) -> dict[str, list[tuple[Tensor, Tensor]]]:
    labels = torch.arange(len(images)) % CLASSES
    split = zip(images.split(PART), labels.split(PART), strict=True)
    return {name: [pair] for name, pair in zip(("calibration", "search", "report"), split, strict=True)}


def searched(name: str, folder: Path) -> tuple[nn.Module, Task, SearchResult]:
    images = torch.randn(3 * PART, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(1))
    net = random_net(name, images)
    task = Task(net, images[:1], **parts(images), metric="cosine", name=name)
    result = search(task, Budget(size_ratio=0.6), trials=2, output_dir=folder, overrides=QUICK)
    return net, task, result


@pytest.mark.parametrize("name", NETS)
def test_passes_through_a_search(name: str, tmp_path: Path) -> None:
    net, task, result = searched(name, tmp_path)
    first = result.records[0]
    assert (first.state, list(first.warnings)) == ("complete", []), first.reason  # every layer meant to be integer is
    assert all(record.state == "complete" or record.gate == "size" for record in result.records)
    assert result.status == "feasible", result.reasons
    assert not [reason for reason in result.reasons if "dropped" in reason]  # file and module twin agree

    inputs = task.sets["report"].inputs
    with torch.no_grad():
        expected = net(torch.from_numpy(inputs)).numpy()
    fp32, best = (run(tmp_path / file, inputs) for file in ("fp32.onnx", "best/model.onnx"))
    assert snr_db(expected, fp32) > 60  # the user's own module, before anything was rewritten
    assert snr_db(expected, best) > 15
    cosine = torch.nn.functional.cosine_similarity(torch.from_numpy(best), torch.from_numpy(fp32)).mean()
    assert result.best.measurement.accuracy == pytest.approx(float(cosine), abs=1e-4)
    assert result.best.measurement.size_ratio is not None
    assert result.best.measurement.size_ratio < 0.6


def run(path: Path, inputs: Any) -> Any:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": inputs})[0])
