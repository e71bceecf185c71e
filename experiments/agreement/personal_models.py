"""Personal models of PFLlib's clients in the form that this library's have.

``client`` is PFLlib's, and ``params`` makes our parameters of a PyTorch module. Some servers score
before they send; functions of a ``server`` give its clients' ``model`` what they would be sent.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from pflalign_jax.algorithms.fedcp import Gated
from pflalign_jax.algorithms.gpfl import Conditioned

Params = Callable[[Any], Any]


def model(client: Any, params: Params) -> Any:
    """Return the model that was received."""
    return params(client.model)


def model_per(client: Any, params: Params) -> Any:
    """Return the model beside the one that is shared."""
    return params(client.model_per)


def model_p(client: Any, params: Params) -> Any:
    """Return FedPHP's inherited model."""
    return params(client.model_p)


def personalized(client: Any, params: Params) -> Any:
    """Return pFedMe's θ, a list of tensors."""
    client.update_parameters(client.model, client.personalized_params)
    return params(client.model)


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


def conditioned(client: Any, params: Params) -> Any:
    """Return GPFL's model."""
    gain, offset = client.CoV.Conditional_gamma, client.CoV.Conditional_beta
    return Conditioned(
        model=params(client.model),
        valve={"gain": dense(gain[0]), "offset": dense(offset[0])},
        condition=client.personalized_conditional_input.detach().numpy().copy(),
    )


def received_already(server: Any) -> None:
    """Do nothing: clients have what they start the next round with."""


def score_inherited(server: Any) -> None:
    """FedPHP: what is scored is the inherited model, not the one that was just trained."""
    for client in server.clients:
        client.clone_model(client.model_p, client.model)


def mixture(server: Any) -> None:
    """FedALA: the last weights mix the clients' models with the global one."""
    received = list(server.global_model.parameters())
    for client in server.clients:
        own, num_mixed = list(client.model.parameters()), client.layer_idx
        weights = client.ALA.weights or [1.0] * num_mixed  # none are learnt in the first round
        for param, w in zip(own[:-num_mixed], received[:-num_mixed], strict=True):
            param.data = w.data.clone()
        for param, w, weight in zip(own[-num_mixed:], received[-num_mixed:], weights, strict=True):
            param.data += weight * (w.data - param.data)


def mixture_of_useful(server: Any) -> None:
    """FedFomo: clients have moved to the models that they received."""
    for client in server.clients:
        _, held = client.load_train_data()
        client.aggregate_parameters(held)


def mixture_of_cores(server: Any) -> None:
    """APPLE: clients have mixed the core models that they received."""
    for client in server.clients:
        client.aggregate_parameters()


def received_body(server: Any) -> None:
    """FedAS: clients have the server's body."""
    for client in server.clients:
        client.clone_model(server.global_model.base, client.model.base)


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
