"""Runs the model beside this file: `python run.py INPUT.npy ...` writes OUTPUT.npy; without arguments it reads zeros.

Needs openvino and numpy, nothing else. README.md says how inputs are prepared; their first axis is the batch.
"""

import sys
from pathlib import Path

import numpy as np
import openvino

settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
model = openvino.Core().compile_model(Path(__file__).with_name("model.onnx"), "CPU", settings)
arrays = [np.load(path) for path in sys.argv[1:]] or [
    np.zeros([size.get_length() if size.is_static else 1 for size in value.partial_shape], value.element_type.to_dtype())
    for value in model.inputs
]
outputs = model(arrays)
for place, value in enumerate(model.outputs):
    name, output = f"OUTPUT{place or ''}.npy", outputs[value]
    np.save(name, output)
    sys.stdout.write(f"{name}: shape {output.shape}, largest at {np.argmax(output, axis=-1).ravel()[:10]}\n")
