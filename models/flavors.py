"""A version in MLflow's model format, so that its own tools load it: the flavors keras, onnx and python_function."""

import shutil
from collections.abc import Mapping
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING

from digits import reference
from models import digits_pyfunc, onnx_model

if TYPE_CHECKING:  # MLflow takes 4 s to import
    from mlflow.models import Model

EXAMPLE_SIZE = 2  # images


def save(folder: Path, files: Mapping[str, bytes], model: "Model") -> None:
    """Write the files of a version into a new folder, with what MLflow needs to load them: `MLmodel`, signature, example, requirements."""
    import mlflow
    import onnx
    from mlflow.models import Model, infer_signature

    onnx_file, loader = files["model.onnx"], Path(digits_pyfunc.__file__)
    served, example = onnx_model.load(onnx_file), reference.from_bytes(files["reference.npz"]).images[:EXAMPLE_SIZE]
    inputs, outputs = {digits_pyfunc.INPUT: example}, dict(zip(served.outputs, served.predict(example), strict=False))
    mlflow.onnx.save_model(
        onnx.load_model_from_string(onnx_file),
        folder,
        mlflow_model=model,
        signature=infer_signature(inputs, outputs),
        input_example=inputs,
        pip_requirements=[f"{library}=={installed(library)}" for library in ("onnxruntime", "numpy")],
        save_as_external_data=False,
        onnx_execution_providers=["CPUExecutionProvider"],
    )
    if "model.keras" in files:
        # `data` is the path without `.keras`.
        backend = {"keras_backend": "tensorflow", "save_exported_model": False}
        model.add_flavor("keras", data="model", keras_version=installed("keras"), **backend)
    environment = model.flavors["python_function"]["env"]
    (folder / "code").mkdir()
    shutil.copy(loader, folder / "code")
    mlflow.pyfunc.add_to_model(
        model,
        loader_module=loader.stem,
        data="model.onnx",
        code="code",
        conda_env=environment["conda"],
        python_env=environment["virtualenv"],
    )
    for name, content in files.items():
        (folder / name).write_bytes(content)
    # MLflow refuses lists and single images where the signature is a tensor's, except where the model checks its inputs itself.
    Model.from_dict(model.to_dict() | {"is_signature_from_type_hint": True}).save(folder / "MLmodel")
