"""Networks that both sides have, and how PyTorch's parameters become ours."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pflalign_jax import models


class Network(NamedTuple):
    """A network of both sides.

    Attributes:
      theirs: name of the class in PFLlib's ``flcore.trainmodel.models``.
      arguments: what it is made with.
      head: name of its last layer there.
      ours: makes our model.
      layers: names of our layers, in the order in which theirs come.
    """

    theirs: str
    arguments: dict[str, Any]
    head: str
    ours: Callable[[], models.Model]
    layers: Sequence[str]


NETWORKS = {
    "cnn": Network(
        "FedAvgCNN",
        {"in_features": 1, "num_classes": 10, "dim": 1024},
        "fc",
        lambda: models.cnn(10),
        ("Conv_0", "Conv_1", "Dense_0", "Dense_1"),
    ),
    "mlp": Network(
        "FedAvgMLP",
        {"in_features": 784, "num_classes": 10, "hidden_dim": 200},
        "fc2",
        lambda: models.mlp(10, (200,)),
        ("Dense_0", "Dense_1"),
    ),
}
"""What ``--model`` can be."""


def params_of(layers: Sequence[str], tensors: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return our parameters of PyTorch's.

    A dense weight ``[out, in]`` becomes ``[in, out]``; a convolution's ``[out, in, h, w]`` becomes
    ``[h, w, in, out]``. Behind convolutions the inputs of a dense layer are flattened from
    ``[C, h, w]`` there and from ``[h, w, C]`` here, so its rows change places.

    Args:
      layers: names of our layers.
      tensors: weight and bias of each layer, in the same order.

    >>> params = params_of(["Dense_0"], [np.arange(6).reshape(2, 3), np.zeros(2)])
    >>> params["Dense_0"]["kernel"].tolist()
    [[0, 3], [1, 4], [2, 5]]
    """
    params, channels = {}, 0
    weights = zip(layers, tensors[::2], tensors[1::2], strict=True)
    for layer, weight, bias in weights:
        if weight.ndim == 4:
            kernel, channels = weight.transpose(2, 3, 1, 0), len(weight)
        elif channels:
            side = round((weight.shape[1] / channels) ** 0.5)
            rows = weight.reshape(len(weight), channels, side, side).transpose(2, 3, 1, 0)
            kernel, channels = rows.reshape(weight.shape[1], len(weight)), 0
        else:
            kernel = weight.T
        params[layer] = {"kernel": kernel, "bias": bias}
    return params
