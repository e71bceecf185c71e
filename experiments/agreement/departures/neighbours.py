"""Of what PFLlib's clients take from each other."""

import contextlib
import copy
import math
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np

from experiments.agreement.their_run import TheirRun


@contextlib.contextmanager
def pull_to_clouds(run: TheirRun) -> Iterator[None]:
    """FedAMP: clients start at their cloud models, whose pull has a gradient."""
    server, send = run.server, run.server.send_models

    def send_and_start() -> None:
        send()  # first all: the clients' models of the last round make up the cloud models
        for client in server.clients:
            client.clone_model(client.client_u, client.model)

    def follow(client: Any) -> None:
        step, pull = client.optimizer.step, client.lamda / client.alphaK

        def pulled_step() -> None:
            pairs = zip(client.model.parameters(), client.client_u.parameters(), strict=True)
            for param, cloud in pairs:
                param.grad += pull * (param.data - cloud.data)
            step()

        client.optimizer.step = pulled_step

    for client in server.clients:
        follow(client)
    server.send_models = send_and_start
    yield


@contextlib.contextmanager
def collaborators_from_the_first_round(run: TheirRun) -> Iterator[None]:
    """FedCAC: customised models are made after the first round, too."""
    server, send = run.server, run.server.send_models

    def customise_and_send() -> None:
        if server.epoch == 0 and server.clients[0].critical_parameter is not None:
            server.get_customized_global_models()
        send()

    server.send_models = customise_and_send
    yield


HELD_OUT = 5
"""FedFomo: every so many-th training example is held out."""


@contextlib.contextmanager
def gains_over_own_model(run: TheirRun) -> Iterator[None]:
    """FedFomo: other models are compared with the client's trained one, on our held-out data."""

    def follow(client: Any) -> None:
        aggregate = client.aggregate_parameters

        def load_train_data(batch_size: int | None = None) -> tuple[list, list]:
            x, y = run.examples(client.id)
            is_held = np.arange(len(y)) % HELD_OUT == HELD_OUT - 1
            rest = np.flatnonzero(~is_held)
            rest = rest[run.orders.of_client(client.id, len(rest))]
            full = range(0, max(len(rest) - client.batch_size, 0) + 1, client.batch_size)
            batches = [rest[start : start + client.batch_size] for start in full]
            return [(x[rows], y[rows]) for rows in batches], [(x[is_held], y[is_held])]

        def aggregate_from_trained(held: Any) -> None:
            client.clone_model(client.model, client.old_model)
            aggregate(held)

        client.load_train_data, client.aggregate_parameters = (
            load_train_data,
            aggregate_from_trained,
        )

    for client in run.server.clients:
        follow(client)
    yield


@contextlib.contextmanager
def cores_as_sent(run: TheirRun) -> Iterator[None]:
    """APPLE: what is sent is the core model; gradients of the shares are sums over all parameters.

    The core model moves after the shares, with the same gradient.
    """
    torch, server = run.torch, run.server
    num_clients, num_tensors = server.num_clients, len(list(server.global_model.parameters()))

    def follow(client: Any) -> None:
        train, mix, share = client.train, client.aggregate_parameters, None
        rate = client.learning_rate / num_clients
        client.learning_rate, client.p0 = 0.0, [1 / num_clients] * num_clients
        # PFLlib divides by the number of tensors what the patched mean has summed up.
        client.drlr, client.mu = client.drlr * num_tensors, client.mu / num_tensors

        def move_core() -> None:
            pairs = zip(client.model_c.parameters(), client.model.parameters(), strict=True)
            for core, param in pairs:
                core.data -= rate * share * param.grad

        def move_and_mix() -> None:
            nonlocal share
            if share is not None:
                move_core()
            share = client.ps[client.id]
            mix()

        def train_core(round_index: int) -> None:
            nonlocal share
            # Others receive the core model as it was sent, not as it is trained meanwhile.
            client.model_cs = copy.deepcopy(client.model_cs)
            core = client.model_c = client.model_cs[client.id]
            client.lamda = (1 + math.cos(math.pi * min(round_index / client.L, 1))) / 2
            client.aggregate_parameters = move_and_mix
            train(round_index)
            client.model_c = core
            move_core()
            share, client.aggregate_parameters = None, mix

        client.train = train_core

    for client in server.clients:
        follow(client)
    with mock.patch.object(torch, "mean", torch.sum):
        yield
