"""Of PFLlib's training and averaging of whole models."""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any
from unittest import mock

from experiments.agreement.their_run import TheirRun


@contextlib.contextmanager
def squared_norm(run: TheirRun) -> Iterator[None]:
    """FedDyn: the norm that its loss takes is squared."""
    with mock.patch.object(run.torch, "norm", lambda vector, order: (vector**2).sum()):
        yield


@contextlib.contextmanager
def weights_by_examples(run: TheirRun) -> Iterator[None]:
    """FedNTD: clients count by their examples."""
    run.weigh_clients(lambda k: run.dataset.splits["train"].sizes[k])
    yield


@contextlib.contextmanager
def teachers_fixed(run: TheirRun) -> Iterator[None]:
    """FML: a teacher has no gradient, KL is a sum over classes, nothing is clipped."""
    functional = run.torch.nn.functional

    def divergence(log_student: Any, teacher: Any) -> Any:
        return functional.kl_div(log_student, teacher.detach(), reduction="batchmean")

    for client in run.server.clients:
        client.KL = divergence
    with (
        weights_by_examples(run),
        mock.patch.object(run.torch.nn.utils, "clip_grad_norm_", lambda params, norm: None),
    ):
        yield


@contextlib.contextmanager
def personal_models_stay(run: TheirRun) -> Iterator[None]:
    """pFedMe: θ goes on from its last value, without weight decay; clients count equally."""

    def follow(client: Any) -> None:
        receive, step = client.set_parameters, client.optimizer.step

        def receive_w_alone(model: Any) -> None:
            receive(model)
            client.update_parameters(client.model, client.personalized_params)

        def step_to_copies(*args: Any) -> list[Any]:
            # Not the parameters of client.model, which are overwritten after the round.
            return [param.detach().clone() for param in step(*args)]

        client.set_parameters, client.optimizer.step = receive_w_alone, step_to_copies
        client.optimizer.param_groups[0]["mu"] = 0.0

    for client in run.server.clients:
        follow(client)
    run.weigh_clients(lambda k: 1)
    yield


ALPHA = 0.01
"""Step size of Per-FedAvg's adaptation."""


@contextlib.contextmanager
def halves_of_a_batch(run: TheirRun) -> Iterator[None]:
    """Per-FedAvg: halves are every other example of our batches, trained on once in a round."""

    def follow(client: Any) -> None:
        train, load, calls = client.train, client.load_train_data, itertools.count()

        def load_in_halves(batch_size: int | None = None) -> list[tuple[Any, Any]]:
            return [
                tuple(run.torch.cat([part[::2], part[1::2]]) for part in batch)
                for batch in load(batch_size)
            ]

        def train_once() -> None:
            if next(calls) % 2 == 0:  # PFLlib calls it twice
                train()

        client.load_train_data, client.train = load_in_halves, train_once
        client.batch_size //= 2
        client.optimizer.param_groups[0]["lr"] = ALPHA

    for client in run.server.clients:
        follow(client)
    yield


@contextlib.contextmanager
def weights_learn_as_models(run: TheirRun) -> Iterator[None]:
    """FedALA: one epoch for the mixing weights in every round, on the batches of the round."""

    def follow(client: Any) -> None:
        learning, learn = client.ALA, client.ALA.adaptive_local_aggregation

        def learn_on_batches(received: Any, own: Any) -> None:
            batches = client.load_train_data()
            learning.train_data = [pair for batch in batches for pair in zip(*batch, strict=True)]
            learn(received, own)

        learning.adaptive_local_aggregation = learn_on_batches
        learning.start_phase, learning.rand_percent = False, 100

    for client in run.server.clients:
        follow(client)
    yield
