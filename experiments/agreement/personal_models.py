"""Personal models of PFLlib's clients in the form that this library's have.

``client`` is PFLlib's, and ``params`` makes our parameters of a PyTorch module.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from pflalign_jax.algorithms.fedcp import Gated

Params = Callable[[Any], Any]


def model(client: Any, params: Params) -> Any:
    """Return the model that was received."""
    return params(client.model)


def model_per(client: Any, params: Params) -> Any:
    """Return the model beside the one that is shared."""
    return params(client.model_per)


def two_heads(client: Any, params: Params) -> Any:
    """Return FedRoD's model: the sum of two dense heads is a dense head."""
    shared = params(client.model)
    own = dense(client.head)
    return with_head(shared, {name: value + own[name] for name, value in head_of(shared).items()})


def biased(client: Any, params: Params) -> Any:
    """Return FedDBE's model: a bias of features is one of logits."""
    shared = params(client.model)
    head = head_of(shared)
    bias = client.client_mean.detach().numpy() @ head["kernel"]
    return with_head(shared, {**head, "bias": head["bias"] + bias})


def nearest_prototype(client: Any, params: Params) -> Any:
    """Return FedProto's model: the nearest prototype c has the largest ``2 c z - ‖c‖²``."""
    own = params(client.model)
    classes = range(client.num_classes)
    prototypes = np.stack([client.global_protos[c].detach().numpy() for c in classes])
    return with_head(own, {"kernel": 2 * prototypes.T, "bias": -(prototypes**2).sum(1)})


def gated(client: Any, params: Params) -> Any:
    """Return FedCP's model."""
    context = client.context[0].detach().numpy()
    return Gated(
        model=params(client.model.model),
        policy=dense(client.model.gate.cs.fc[0]),
        head=dense(client.model.head_g),
        context=context / np.linalg.norm(context),
    )


def dense(layer: Any) -> dict[str, np.ndarray]:
    """Return a dense layer of PyTorch as ours."""
    weight, bias = (tensor.detach().numpy().copy() for tensor in (layer.weight, layer.bias))
    return {"kernel": weight.T, "bias": bias}


def head_of(params: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the last layer of a model."""
    return params[list(params)[-1]]


def with_head(params: dict[str, Any], head: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return a model with another last layer."""
    return {**params, list(params)[-1]: head}
