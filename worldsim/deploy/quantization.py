"""Linear layers and embeddings of an ONNX graph in 8 bits: a smaller bundle for small computers, at the price of some accuracy.

Weights are stored as int8 with one scale per output channel; activations are quantised as they come (onnxruntime's dynamic
quantisation). Convolutions stay float32, because in 8 bits they were slower. `benchmarks/bundle.py` measures what it costs."""

import copy
import logging
from pathlib import Path


def quantize(path: Path) -> None:
    """Replace an ONNX file by its quantised form.

    Args:
        path: a graph with its weights inside.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(path)
    model.graph.ClearField("value_info")  # shapes of before, which no longer hold
    _untie(model)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises a preprocessing that a traced graph does not need
    try:
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["Gather", "Gemm", "MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
    finally:
        root.setLevel(level)


def _untie(model) -> None:
    """A copy of its own for every use of a weight: the unrolled sampler uses its layers several times, and onnxruntime would
    transpose them as often."""
    weights, used = {weight.name: weight for weight in model.graph.initializer}, set()
    for node in model.graph.node:
        for k, name in enumerate(node.input):
            if name in weights and name in used:
                twin = copy.deepcopy(weights[name])
                twin.name = f"{node.name}.{name}"
                model.graph.initializer.append(twin)
                node.input[k] = twin.name
            used.add(name)
