"""Of what PFLlib does with features, heads and what conditions them."""

import collections
import contextlib
import copy
import random
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from experiments.agreement.their_run import TheirRun, to_tensor
from pflalign_jax.algorithms.fedpac import combinations


@contextlib.contextmanager
def heads_of_zeros(run: TheirRun) -> Iterator[None]:
    """FedRoD: personal heads start at 0, and all examples are counted by class."""
    for client in run.server.clients:
        counts = run.label_counts(client.id)
        client.sample_per_class = run.torch.from_numpy(counts.astype(np.float32))
        for param in client.head.parameters():
            param.data.zero_()
    yield


@contextlib.contextmanager
def later_consensus(run: TheirRun) -> Iterator[None]:
    """FedDBE: the consensus is that of our first round, before which nothing pulls to it."""
    consensus = run.torch.from_numpy(run.ours.servers[1].mean)
    weight = run.server.args.kl_weight

    def follow(client: Any) -> None:
        train = client.train

        def train_with_consensus() -> None:
            client.klw = weight if run.orders.round > 0 else 0.0
            client.global_mean = consensus
            train()

        client.train = train_with_consensus

    for client in run.server.clients:
        follow(client)
    yield


@contextlib.contextmanager
def prototypes_after_training(run: TheirRun) -> Iterator[None]:
    """FedProto: prototypes are means over all examples after the round, weighted by examples."""

    def sums_by_class(client: Any) -> dict[int, tuple[Any, int]]:
        images, labels = run.examples(client.id)
        with run.torch.no_grad():
            features = client.model.base(images)
        return {
            int(c): (features[labels == c].sum(0), int((labels == c).sum()))
            for c in labels.unique()
        }

    def collect(client: Any) -> None:
        train = client.train

        def train_and_collect() -> None:
            train()
            client.protos = sums_by_class(client)

        client.train = train_and_collect

    def merged(of_clients: list[dict[int, tuple[Any, int]]]) -> dict[int, Any]:
        means: dict[int, Any] = collections.defaultdict(list)  # [] where PFLlib knows no prototype
        for c in set().union(*of_clients):
            sums, counts = zip(*(found[c] for found in of_clients if c in found), strict=True)
            means[c] = sum(sums) / sum(counts)
        return means

    for client in run.server.clients:
        collect(client)
    module = sys.modules[type(run.server).__module__]
    with mock.patch.object(module, "proto_aggregation", merged):
        yield


@contextlib.contextmanager
def heads_in_order(run: TheirRun) -> Iterator[None]:
    """FedPAC: as FedProto's prototypes; heads are combined as sent, with our weights of them."""
    server = run.server
    combine, module = server.aggregate_and_send_heads, sys.modules[type(server).__module__]

    def combine_as_sent() -> None:
        server.uploaded_heads = copy.deepcopy(server.uploaded_heads)
        combine()

    def weights(number: int, variances: Any, means: Any) -> np.ndarray:
        return combinations(np.stack(means), np.array(variances), np.ones(number))

    for client in server.clients:
        run.by_all_examples(client, "statistics_extraction")
    server.aggregate_and_send_heads = combine_as_sent
    with (
        prototypes_after_training(run),
        mock.patch.object(module, "solve_quadratic", weights),
        mock.patch.object(random, "sample", lambda clients, number: clients[:number]),
    ):
        yield


@contextlib.contextmanager
def head_by_clients(run: TheirRun) -> Iterator[None]:
    """FedGH: the head is the server's alone, and takes a step for each client, in their order."""
    server, torch = run.server, run.torch
    server.head = copy.deepcopy(server.head)
    steps = torch.optim.SGD(server.head.parameters(), lr=server.server_learning_rate)

    def train_head() -> None:
        for client in server.clients:
            labels = sorted(client.protos)
            means = torch.stack([client.protos[c] for c in labels])
            steps.zero_grad()
            server.CEloss(server.head(means), torch.tensor(labels)).backward()
            steps.step()

    server.train_head = train_head
    for client in server.clients:
        run.by_all_examples(client, "collect_protos")
    yield


@contextlib.contextmanager
def conditions_as_received(run: TheirRun) -> Iterator[None]:
    """GPFL: our first embeddings and valve; conditions are of the received embeddings."""
    first = run.ours.servers[0]

    def follow(client: Any) -> None:
        counts = run.label_counts(client.id)
        client.sample_per_class = run.torch.from_numpy((counts / counts.sum()).astype(np.float32))
        client.GCE.embedding.weight.data = to_tensor(run.torch, first.classes)
        for name, (layer, _, norm) in (
            ("gain", client.CoV.Conditional_gamma),
            ("offset", client.CoV.Conditional_beta),
        ):
            layer.weight.data = to_tensor(run.torch, first.valve[name]["kernel"].T)
            layer.bias.data = to_tensor(run.torch, first.valve[name]["bias"])
            for param in norm.parameters():
                param.requires_grad = False
        receive = client.set_GCE

        def receive_first(embeddings: Any) -> None:
            client.clone_model(embeddings, client.GCE)
            receive(embeddings)

        client.set_GCE = receive_first
        client.set_GCE(client.GCE)

    for client in run.server.clients:
        follow(client)
    yield


@contextlib.contextmanager
def alignment_over_batches(run: TheirRun) -> Iterator[None]:
    """FedAS: alignment as ours, none before the first round; the trace is of all examples."""
    torch, size = run.torch, 0

    def share_of_batch() -> Any:
        """Of one class: PFLlib adds the classes of a batch."""
        return lambda z, mean: ((z - mean) ** 2).mean(1).sum() / size

    def trace(client: Any) -> float:
        total, (images, labels) = 0.0, run.examples(client.id)
        for x, y in zip(
            images.split(client.batch_size), labels.split(client.batch_size), strict=True
        ):
            loss = client.loss(client.model(x), y)
            grads = torch.autograd.grad(loss, list(client.model.parameters()))
            total += len(y) / client.batch_size * sum(float((g**2).sum()) for g in grads)
        return total

    def follow(client: Any) -> None:
        align, train, load = client.set_parameters, client.train, client.load_train_data

        def receive(model: Any, progress: float) -> None:
            nonlocal size
            batches = load()
            size = len(batches[0][1])
            # PFLlib goes through its batches twice: for the means, and for the alignment.
            both = _Passes([run.examples(client.id)], batches)
            if run.orders.round == 0:
                client.clone_model(model.base, client.model.base)
                return
            with mock.patch.object(client, "load_train_data", lambda batch_size: both):
                align(model, progress)

        def train_and_trace(is_selected: bool) -> None:
            train(is_selected)
            client.fim_trace_history[-1] = trace(client)

        client.set_parameters, client.train = receive, train_and_trace

    for client in run.server.clients:
        follow(client)
    with mock.patch.object(torch.nn, "MSELoss", share_of_batch):
        yield


class _Passes:
    """Batches that are other ones each time that one goes through them."""

    def __init__(self, *passes: Any) -> None:
        self._passes = iter(passes)

    def __iter__(self) -> Iterator[Any]:
        return iter(next(self._passes))


@contextlib.contextmanager
def noiseless_policy(run: TheirRun) -> Iterator[None]:
    """FedCP: no noise, our first policy and context, no gain and offset in the normalisation."""
    functional, policy = run.torch.nn.functional, run.ours.servers[0].policy

    def softmax(x: Any, dim: int, **options: Any) -> Any:
        return functional.softmax(x, dim=dim)

    for client in run.server.clients:
        layer, norm, _ = client.model.gate.cs.fc
        layer.weight.data = to_tensor(run.torch, policy["kernel"].T)
        layer.bias.data = to_tensor(run.torch, policy["bias"])
        for param in norm.parameters():
            param.requires_grad = False
        client.context = client.model.model.head.weight.data.sum(0, keepdim=True)
    with mock.patch.object(functional, "gumbel_softmax", softmax):
        yield


@contextlib.contextmanager
def without_gumbel_noise() -> Iterator[None]:
    """Leave the noise out of our FedCP, too: the two sides draw it by other generators."""
    with mock.patch.object(jax.random, "gumbel", lambda key, shape: jnp.zeros(shape)):
        yield
