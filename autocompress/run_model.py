"""Runs the model beside this file: `python run.py INPUT.npy ...` writes OUTPUT.npy; without arguments it reads zeros.

Needs onnxruntime and numpy, nothing else. README.md says how inputs are prepared; their first axis is the batch.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}

session = onnxruntime.InferenceSession(Path(__file__).with_name("model.onnx"), providers=["CPUExecutionProvider"])
inputs = session.get_inputs()
arrays = [np.load(path) for path in sys.argv[1:]] or [
    np.zeros([size if isinstance(size, int) else 1 for size in value.shape], DTYPES[value.type]) for value in inputs
]
outputs = session.run(None, {value.name: array for value, array in zip(inputs, arrays, strict=True)})
for place, output in enumerate(outputs):
    name = f"OUTPUT{place or ''}.npy"
    np.save(name, output)
    sys.stdout.write(f"{name}: shape {output.shape}, largest at {np.argmax(output, axis=-1).ravel()[:10]}\n")
