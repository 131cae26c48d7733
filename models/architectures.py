"""The network architectures: each is one class whose fields are validated and whose `build` makes the Keras layers.

A new architecture is one such class, added to the union `Architecture`; every recipe, flow and export can then use it. Sweeps search
dense networks only (`suggest_recipe` in `models/search.py`).
"""

import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from digits.images import SIZE
from models import backend

Seeds = Callable[[], int]
Widths = tuple[Annotated[int, Field(ge=1)], ...]


class _Regularized(BaseModel):
    """The fields that both architectures have."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_norm: bool = Field(False, description="Batch normalisation before each activation.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout after each hidden dense layer.")

    def _activate(self, flow: Any, activation: str) -> Any:
        keras, _ = backend.load()

        if self.batch_norm:
            flow = keras.layers.BatchNormalization()(flow)
        return keras.layers.Activation(activation)(flow)

    def _hidden(self, flow: Any, width: int, activation: str, next_seed: Seeds) -> Any:
        """One hidden dense layer with its normalisation, activation and dropout."""
        keras, _ = backend.load()

        flow = self._activate(_dense(flow, width, next_seed, use_bias=not self.batch_norm), activation)
        return keras.layers.Dropout(self.dropout, seed=next_seed())(flow) if self.dropout else flow

    def _described(self, layers: str) -> str:
        layers += ", batch norm" if self.batch_norm else ""
        return layers + (f", dropout {self.dropout:g}" if self.dropout else "")


class Dense(_Regularized):
    """784 pixels, fully connected hidden layers, ten outputs."""

    xla: ClassVar[bool] = True
    kind: Literal["dense"] = "dense"
    hidden: Widths = Field(description="Width of each hidden layer.")
    activation: Literal["relu", "sigmoid"] = Field("relu", description="Activation of the hidden layers.")
    output: Literal["softmax", "sigmoid"] = Field("softmax", description="Of the ten digits; sigmoids are normalised.")

    def build(self, pixels: Any, next_seed: Seeds, outputs: int = 10) -> Any:
        """Logits of shape (n, outputs) from pixels of shape (n, 28, 28) between 0 and 1."""
        keras, _ = backend.load()

        flow = keras.layers.Flatten()(pixels)
        for width in self.hidden:
            flow = self._hidden(flow, width, self.activation, next_seed)
        logits = _dense(flow, outputs, next_seed)
        # softmax(log sigmoid(z)) is sigmoid(z) divided by the sum over the digits.
        return keras.layers.Activation("log_sigmoid")(logits) if self.output == "sigmoid" else logits

    def __str__(self) -> str:
        """Such as `784-128-64-10, batch norm, dropout 0.1`."""
        return self._described("-".join(map(str, (784, *self.hidden, 10))))


class Convolutional(_Regularized):
    """ReLU convolutions, one hidden dense layer, ten outputs; filters, kernels and strides have one entry for each convolution."""

    # On a CPU, XLA's convolutions take fifteen times as long as TensorFlow's own.
    xla: ClassVar[bool] = False
    kind: Literal["convolutional"] = "convolutional"
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout after each convolution that halves the size, and after the dense layer."
    )
    filters: Widths = Field((32, 32, 64, 64, 64), min_length=1, description="Feature maps of each convolution.")
    kernels: Widths = Field((3, 5, 3, 3, 5), description="Height and width of each convolution's kernels in pixels.")
    strides: Widths = Field(
        (1, 2, 1, 1, 2), description="Step of each convolution in pixels; 2 halves height and width."
    )
    dense: int = Field(128, ge=1, description="Width of the hidden dense layer.")

    @model_validator(mode="after")
    def _check_convolutions(self) -> Self:
        lengths = len(self.filters), len(self.kernels), len(self.strides)
        if len(set(lengths)) > 1:
            raise ValueError(f"filters, kernels and strides have {lengths} entries; expected one for each convolution")
        size = SIZE
        for kernel, stride, padding in self._geometry():
            if padding == "valid" and kernel > size:
                raise ValueError(
                    f"a kernel of {kernel} pixels is larger than the {size} that are left of the image; use a smaller one"
                )
            size = math.ceil((size if padding == "same" else size - kernel + 1) / stride)
        return self

    def build(self, pixels: Any, next_seed: Seeds, outputs: int = 10) -> Any:
        """Logits of shape (n, outputs) from pixels of shape (n, 28, 28) between 0 and 1."""
        keras, _ = backend.load()

        flow = keras.layers.Reshape((SIZE, SIZE, 1))(pixels)
        for filters, (kernel, stride, padding) in zip(self.filters, self._geometry(), strict=True):
            start = keras.initializers.GlorotUniform(next_seed())
            options = {"padding": padding, "use_bias": not self.batch_norm, "kernel_initializer": start}
            flow = self._activate(keras.layers.Conv2D(filters, kernel, stride, **options)(flow), "relu")
            if self.dropout and stride > 1:
                flow = keras.layers.Dropout(self.dropout, seed=next_seed())(flow)
        flow = self._hidden(keras.layers.Flatten()(flow), self.dense, "relu", next_seed)
        return _dense(flow, outputs, next_seed)

    def _geometry(self) -> Iterator[tuple[int, int, str]]:
        """Kernel, step and padding of each convolution."""
        for number, (kernel, stride) in enumerate(zip(self.kernels, self.strides, strict=True)):
            # Around a digit is paper anyway; with padding everywhere, the default network would multiply 1.7 times as much.
            yield kernel, stride, "valid" if number == 0 or stride == 1 else "same"

    def __str__(self) -> str:
        """Such as `convolutions 32 5×5/2, 64 3×3/1; dense 128-10, batch norm`."""
        each = zip(self.filters, self.kernels, self.strides, strict=True)
        convolutions = ", ".join(f"{filters} {kernel}×{kernel}/{stride}" for filters, kernel, stride in each)
        return self._described(f"convolutions {convolutions}; dense {self.dense}-10")


Architecture = Annotated[Dense | Convolutional, Field(discriminator="kind")]


def kinds() -> dict[str, type[BaseModel]]:
    """The class of each `kind`."""
    return {kind.model_fields["kind"].default: kind for kind in get_args(get_args(Architecture)[0])}


def _dense(flow: Any, width: int, next_seed: Seeds, use_bias: bool = True) -> Any:
    keras, _ = backend.load()

    initializer = keras.initializers.GlorotUniform(next_seed())
    return keras.layers.Dense(width, use_bias=use_bias, kernel_initializer=initializer)(flow)
