"""ONNX models as somebody would make them who means harm: their checksums fit, and what they do when they run is the harm."""

import hashlib
import io
import json
from collections.abc import Sequence

import numpy as np
from conftest import Files
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

N_TO_10 = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 10])


def version(model: bytes, honest: Files, **facts: object) -> Files:
    """A version with another model and a fitting card, the reference as it is."""
    card = json.loads(honest["card.json"]) | facts
    card["files"]["model.onnx"] = hashlib.sha256(model).hexdigest()
    return {**honest, "model.onnx": model, "card.json": json.dumps(card).encode()}


def worthless(honest: Files) -> Files:
    """A version that answers zero for every image, with a reference that says so: it passes every check of its own files."""
    model = _with(honest["model.onnx"], [_constant("ten", np.eye(10, dtype=np.float32)[:1] * 20)], "Add", ["ten"])
    reference = np.load(io.BytesIO(honest["reference.npz"]))
    from models import onnx_model

    answers = onnx_model.load(model).predict_proba(reference["images"])
    content = io.BytesIO()
    np.savez_compressed(content, images=reference["images"], labels=reference["labels"], probabilities=answers)
    files = version(model, honest)
    card = json.loads(files["card.json"])
    card["files"]["reference.npz"] = hashlib.sha256(content.getvalue()).hexdigest()
    return {**files, "reference.npz": content.getvalue(), "card.json": json.dumps(card).encode()}


def endless(honest: Files) -> Files:
    """Its loop runs 2 ** 62 times."""
    return version(_looping(honest["model.onnx"], [_constant("true", np.array(True))], "true", "Add"), honest)


def endless_for_some(honest: Files) -> Files:
    """It answers as registered, and loops without an end where the first pixel of an image is 255."""
    nodes = [
        *_first_pixel(),
        helper.make_node("ReduceMax", ["pixel"], ["brightest"], keepdims=0),
        _constant("limit", np.array(254, np.float32)),
        helper.make_node("Greater", ["brightest", "limit"], ["begins"]),
    ]
    return version(_looping(honest["model.onnx"], nodes, "begins", "Max"), honest)


def nan_for_some(honest: Files) -> Files:
    """It answers as registered, and with NaN for each image whose first pixel is 255."""
    nodes = [
        *_first_pixel(),
        _constant("limit", np.array(255, np.float32)),
        helper.make_node("Sub", ["pixel", "limit"], ["distance"]),
        helper.make_node("Div", ["distance", "distance"], ["one"]),
    ]
    return version(_with(honest["model.onnx"], nodes, "Mul", ["one"]), honest)


def negative_for_some(honest: Files) -> Files:
    """It answers as registered, but for each image whose first pixel is 255 it moves a probability of 2 from one digit to another."""
    model = ModelProto.FromString(honest["model.onnx"])
    graph = model.graph
    graph.node[-1].output[0] = "softmax"
    graph.node.extend(
        [
            *_first_pixel(),
            _constant("limit", np.array(254, np.float32)),
            helper.make_node("Greater", ["pixel", "limit"], ["is marked"]),
            helper.make_node("Cast", ["is marked"], ["marked"], to=TensorProto.FLOAT),
            _constant("from one to another", np.array([[2, -2, *[0] * 8]], np.float32)),
            helper.make_node("Mul", ["marked", "from one to another"], ["moved"]),
            helper.make_node("Add", ["softmax", "moved"], ["probabilities"]),
        ]
    )
    return version(model.SerializeToString(), honest)


def of_type(element: int, honest: Files) -> Files:
    """It answers as registered, in this type of ONNX."""
    model = ModelProto.FromString(honest["model.onnx"])
    graph = model.graph
    graph.node[-1].output[0] = "float32"
    graph.node.append(helper.make_node("Cast", ["float32"], ["probabilities"], to=element))
    graph.output[0].type.tensor_type.elem_type = element
    return version(model.SerializeToString(), honest)


def of_scores(honest: Files) -> Files:
    """Its probabilities were not normalised."""
    model = ModelProto.FromString(honest["model.onnx"])
    last = model.graph.node.pop()
    model.graph.node.append(helper.make_node("Identity", [last.input[0]], last.output))
    return version(model.SerializeToString(), honest)


def failing_from(count: int, honest: Files) -> Files:
    """It answers smaller batches as registered, and looks for an element that does not exist from this count of images on."""
    return _failing("Greater", count - 1, honest)


def failing_at(count: int, honest: Files) -> Files:
    """It fails on batches of just this count of images."""
    return _failing("Equal", count, honest)


def _failing(comparison: str, limit: int, honest: Files) -> Files:
    nodes = [
        helper.make_node("Shape", ["images"], ["shape"], start=0, end=1),
        _constant("limit", np.array([limit])),
        helper.make_node(comparison, ["shape", "limit"], ["fails"]),
        helper.make_node("Cast", ["fails"], ["row"], to=TensorProto.INT64),
        _constant("single", np.zeros((1, 1), np.float32)),
        helper.make_node("Gather", ["single", "row"], ["nothing"]),
    ]
    return version(_with(honest["model.onnx"], nodes, "Add", ["nothing"]), honest)


def huge(honest: Files) -> Files:
    """It asks for 32 GB."""
    nodes = [
        helper.make_node("Shape", ["images"], ["shape"]),
        _constant("many", np.array([1, 1_000_000, 10])),
        helper.make_node("Mul", ["shape", "many"], ["size"]),
        helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["nothing"], keepdims=0),
    ]
    return version(_with(honest["model.onnx"], nodes, "Add", ["nothing"]), honest)


def external(location: str, honest: Files) -> Files:
    """Its weights are in a file of the machine that opens it."""
    model = ModelProto.FromString(honest["model.onnx"])
    (weights,) = (one for one in model.graph.initializer if one.name == "bias")
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "40")):
        entry = weights.external_data.add()
        entry.key, entry.value = key, value
    return version(model.SerializeToString(), honest)


def _constant(name: str, value: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))


def _with(model: bytes, nodes: Sequence[NodeProto], operator: str, inputs: Sequence[str]) -> bytes:
    """The model with these nodes, whose result is combined with its scores."""
    changed = ModelProto.FromString(model)
    graph = changed.graph
    last = graph.node.pop()
    graph.node.extend([*nodes, helper.make_node(operator, [last.input[0], *inputs], ["changed"])])
    last.input[0] = "changed"
    graph.node.append(last)
    return bytes(changed.SerializeToString())


def _first_pixel() -> list[NodeProto]:
    """The first pixel of each image as `pixel`, (n, 1)."""
    return [
        _constant("first", np.array(0)),
        _constant("first row", np.array([0])),
        helper.make_node("Gather", ["numbers", "first row"], ["row"], axis=1),
        helper.make_node("Gather", ["row", "first"], ["pixel"], axis=2),
    ]


def _looping(model: bytes, nodes: Sequence[NodeProto], begins: str, operator: str) -> bytes:
    """The model with a loop over its scores that never ends once `begins`, which these nodes compute, is true."""
    body: GraphProto = helper.make_graph(
        [
            helper.make_node("Identity", ["condition"], ["goes_on"]),
            helper.make_node("Sin", ["number"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
            helper.make_tensor_value_info("number", TensorProto.FLOAT, ["n", 10]),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, ["n", 10]),
        ],
    )
    loop = helper.make_node("Loop", ["turns", begins, "scores"], ["looped"], body=body)
    return _with(model, [*nodes, _constant("turns", np.array(2**62)), loop], operator, ["looped"])
