"""The side of PFLlib: a user's checkout, with our weights and batches.

Nothing of PFLlib is in this repository. Its own servers and clients run, with the batches and the
first weights put in their place. Evaluations are left out, and where a round begins it is counted,
which ends the run after the last one.
"""

import argparse
import contextlib
import importlib
import io
import pathlib
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np

from experiments.agreement.cases import Case
from experiments.agreement.checkout import (
    PACKAGES,
    Checkout,
    ServerClass,
    import_torch,
    importable,
)
from experiments.agreement.data import BatchOrders, write_digits
from experiments.agreement.errors import AgreementError
from experiments.agreement.networks import Network, params_of
from experiments.agreement.ours import OurRun, Outcome, Settings
from experiments.agreement.their_run import TheirRun
from pflalign_jax import datasets
from pflalign_jax.datasets import FederatedDataset


class EnoughRounds(Exception):
    """Raised where PFLlib would begin another round."""


class Federation(NamedTuple):
    """What PFLlib trains.

    Attributes:
      checkout: of PFLlib.
      folder: of the dataset, in PFLlib's form.
      dataset: the same, as this library has read it.
      orders: of the clients' examples.
      network: that is trained.
      settings: of the training.
    """

    checkout: Checkout
    folder: str
    dataset: FederatedDataset
    orders: BatchOrders
    network: Network
    settings: Settings


def prepare(
    checkout: Checkout,
    folder: pathlib.Path,
    num_clients: int,
    network: Network,
    settings: Settings,
) -> Federation:
    """Return what both sides train; its data are written into ``folder``."""
    path = folder / "digits"
    write_digits(path, num_clients)
    dataset = datasets.pfllib(str(path))
    return Federation(checkout, str(path), dataset, BatchOrders(dataset), network, settings)


def server_class(checkout: Checkout, name: str) -> ServerClass:
    """Return how PFLlib starts an algorithm.

    Raises:
      AgreementError: if this checkout does not have it.
    """
    if name not in checkout.servers:
        raise AgreementError(
            f"the checkout of PFLlib in {checkout.system.parent} has no algorithm {name!r}; it has "
            f"{', '.join(sorted(checkout.servers))}"
        )
    return checkout.servers[name]


def check_server(checkout: Checkout, name: str) -> None:
    """Import what an algorithm of PFLlib needs: what is missing is told before any training.

    Raises:
      AgreementError: if this checkout does not have it, or it cannot be imported.
    """
    wanted, _ = server_class(checkout, name), import_torch()
    with importable(checkout), _named_failures(name), _quiet():
        importlib.import_module(wanted.module)


def first_params(federation: Federation) -> Any:
    """Return the first weights of PFLlib's model as our parameters; they are PyTorch's own."""
    with importable(federation.checkout), _named_failures("network"):
        return _params(federation.network, _model(federation))


def train(federation: Federation, case: Case, ours: OurRun, undo: bool) -> Outcome:
    """Train with an algorithm of PFLlib.

    Args:
      federation: what to train.
      case: which algorithm.
      ours: our run with the same weights and batches.
      undo: whether to undo what PFLlib is known to do differently.

    Raises:
      AgreementError: if PFLlib does not have the algorithm, or fails.
    """
    wanted, torch = server_class(federation.checkout, case.theirs), import_torch()
    torch.set_num_threads(1)  # small batches: more threads would mostly wait for each other
    with contextlib.ExitStack() as stack:
        for context in (importable(federation.checkout), _named_failures(case.theirs), _quiet()):
            stack.enter_context(context)
        base = importlib.import_module("flcore.clients.clientbase").Client
        batches = _our_batches(federation)
        stack.enter_context(mock.patch.object(base, "load_train_data", batches))
        server = _server(federation, case, wanted)
        run = TheirRun(torch, server, federation.dataset, federation.orders, ours)
        if undo and case.undo is not None:
            stack.enter_context(case.undo(run))
        count_rounds(federation.settings.rounds, server, case, federation.orders)
        with contextlib.suppress(EnoughRounds):
            server.train()
        case.receive(server)
        return _outcome(federation, case, server)


@contextlib.contextmanager
def _named_failures(what: str) -> Iterator[None]:
    """Turn whatever goes wrong in PFLlib into an error that says in what."""
    try:
        yield
    except AgreementError:
        raise
    except Exception as error:  # whatever another version of PFLlib may do
        mend = "docs/agreement.md names the version that the comparison was written for"
        if isinstance(error, ModuleNotFoundError):
            package = str(error.name).split(".")[0]
            mend = mend if package in PACKAGES else f"pip install {package}"
        raise AgreementError(
            f"PFLlib's {what} failed with {type(error).__name__}: {error}; {mend}"
        ) from error


def _model(federation: Federation) -> Any:
    """Return a new model of PFLlib's, always with the same weights."""
    torch = import_torch()
    networks = importlib.import_module("flcore.trainmodel.models")
    torch.manual_seed(0)
    return getattr(networks, federation.network.theirs)(**federation.network.arguments)


def _server(federation: Federation, case: Case, wanted: ServerClass) -> Any:
    """Return a server of PFLlib with its clients, as its main.py makes one."""
    torch, settings = import_torch(), federation.settings
    model, head = _model(federation), federation.network.head
    if wanted.splits_head:
        last = getattr(model, head)
        setattr(model, head, torch.nn.Identity())
        networks = importlib.import_module("flcore.trainmodel.models")
        model = networks.BaseHeadSplit(model, last)
    given = {
        "algorithm": case.theirs,
        "batch_size": settings.batch_size,
        "dataset": federation.folder,
        "device": "cpu",
        "global_rounds": settings.rounds,
        "local_epochs": settings.local_epochs,
        "local_learning_rate": settings.learning_rate,
        "model": model,
        "num_clients": federation.dataset.num_clients,
        "plocal_epochs": settings.local_epochs,  # of personal models
    }
    arguments = argparse.Namespace(**federation.checkout.defaults | given | dict(case.settings))
    # It shuffles the list of clients, which only changes the order of sums.
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    federation.orders.round = 0
    return getattr(importlib.import_module(wanted.module), wanted.name)(arguments, 0)


def _our_batches(federation: Federation) -> Callable[..., list[tuple[Any, Any]]]:
    """Return a method ``load_train_data`` that gives our batches in our order.

    As in this library with ``drop_last``, a last batch that is not full is left out, unless it is
    the only one.
    """
    torch, dataset, orders = import_torch(), federation.dataset, federation.orders
    x = torch.from_numpy(np.ascontiguousarray(np.moveaxis(dataset.x, -1, 1)))
    y = torch.from_numpy(dataset.y.astype(np.int64))

    def load_train_data(client: Any, batch_size: int | None = None) -> list[tuple[Any, Any]]:
        size = client.batch_size if batch_size is None else batch_size
        own = dataset.splits["train"].of_client(client.id)[orders.of_client(client.id)]
        starts = range(0, max(len(own) - size, 0) + 1, size)
        chosen = [torch.from_numpy(own[start : start + size]) for start in starts]
        return [(x[rows], y[rows]) for rows in chosen]

    return load_train_data


EVALUATIONS = ("evaluate", "evaluate_one_step", "evaluate_personalized")
"""The methods of PFLlib's servers that score; what is compared here is scored once, at the end."""


def count_rounds(rounds: int, server: Any, case: Case, orders: BatchOrders) -> None:
    """Count rounds where one begins, end the run after the last, and leave evaluations out."""
    for name in EVALUATIONS:
        setattr(server, name, lambda *args, **options: None)
    begun, begin = iter(range(rounds + 1)), getattr(server, case.round_start)

    def count(*args: Any, **options: Any) -> Any:
        orders.round = next(begun)
        if orders.round == rounds:
            raise EnoughRounds
        return begin(*args, **options)

    setattr(server, case.round_start, count)


def _outcome(federation: Federation, case: Case, server: Any) -> Outcome:
    def params(module: Any) -> Any:
        return _params(federation.network, module)

    clients: Sequence[Any] = sorted(server.clients, key=lambda client: client.id)
    personal = [case.personal(client, params) for client in clients]
    whole = len(list(_model(federation).parameters()))
    of_server = getattr(server, "global_model", None)
    # Some servers keep a part of the model only, or the first one, which nobody trains.
    has_model = of_server is not None and len(list(of_server.parameters())) == whole
    return Outcome(
        params(of_server) if has_model else None,
        jax.tree.map(lambda *leaves: np.stack(leaves), *personal),
        np.array([int(getattr(client, case.score)()[0]) for client in clients]),
    )


def _params(network: Network, module: Any) -> Any:
    """Return our parameters of a PyTorch module."""
    tensors = [tensor.detach().numpy().copy() for tensor in module.parameters()]
    return params_of(network.layers, tensors)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what PFLlib prints and warns of to itself."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
