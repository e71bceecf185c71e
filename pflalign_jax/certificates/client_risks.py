"""Device programs over clients: train posteriors on the bound, and measure losses on samples."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pflalign_jax.certificates.bound_training import (
    first_posterior,
    gaussian_prior,
    in_parameters,
)
from pflalign_jax.certificates.drawn_predictions import predict_drawn
from pflalign_jax.certificates.gaussians import Gaussian, laplace
from pflalign_jax.datasets import FederatedDataset, Owned
from pflalign_jax.datasets.features import normalise
from pflalign_jax.federated import ClientData, LocalTraining
from pflalign_jax.federated.client_rows import map_clients, read_rows, visit_rows, write_rows
from pflalign_jax.federated.client_states import rows_to_visit
from pflalign_jax.federated.device_program import Visits, compiler_options
from pflalign_jax.federated.sharding import (
    REPLICATED,
    SHARDED,
    Block,
    PlacedData,
    Placement,
    by_device,
    place_clients,
    place_data,
    put_replicated,
    put_sharded,
)
from pflalign_jax.models.frozen import Frozen, as_argument

BoundedLoss = Callable[[jax.Array, jax.Array], jax.Array]
"""``(outputs [B, ...], y [B, ...]) -> losses [B]`` in [0, 1]."""

TRIALS_AT_ONCE = 8
"""Examples that are tried together, each with a model of its own."""

EXAMPLES_AT_ONCE = 64
"""Examples that a model predicts together."""

SAMPLE, TEST = "train", "test"
"""Splits of the clients' view: the bound sample is where training finds its examples."""


class Measuring(NamedTuple):
    """What is fixed when the programs are built.

    Attributes:
      apply: ``(params, x) -> outputs`` of the clients' models.
      loss: of outputs, in [0, 1].
      mesh, client_chunk: as of the federation.
      frozen: the model's frozen weights.
      training: on the bound; None: posteriors are not trained.
      tx: its optimiser.
      draws: models drawn for each example of the sample.
    """

    apply: Callable[[Any, jax.Array], jax.Array]
    loss: BoundedLoss
    mesh: Mesh
    client_chunk: int
    frozen: Frozen | None
    training: LocalTraining | None
    tx: Any
    draws: int


class Clients(NamedTuple):
    """Clients on devices with their bound sample and their test examples.

    Attributes:
      placement: where each is.
      data: their examples; the split `SAMPLE` is the bound sample.
      visits: which rows each device visits.
    """

    placement: Placement
    data: PlacedData
    visits: Visits


class Risks(NamedTuple):
    """What a program finds, leaves ``[K, ...]``.

    Attributes:
      posterior: `Gaussian` of the model's parameters; () of models themselves.
      prior: means and logarithms of scales, those a scalar per leaf; () likewise.
      sample, test: sums of losses on the bound sample (over ``draws`` of each example) and on the
        test examples.
    """

    posterior: Any
    prior: Any
    sample: Any
    test: Any


def place(
    dataset: FederatedDataset, sample: Owned, test: Owned, mesh: Mesh, client_chunk: int
) -> Clients:
    """Put clients on devices with what they are certified on.

    Args:
      dataset: of K clients.
      sample: the bound sample of each; none is larger than 0 examples for nobody.
      test: their test examples.
      mesh, client_chunk: of the federation.
    """
    view = dataset._replace(splits={SAMPLE: sample, TEST: test}, bound=None, new_clients=None)
    placement = place_clients(sample.sizes, mesh.size)
    splits = (SAMPLE, TEST) if len(test.indices) else (SAMPLE,)
    longest = int(sample.sizes.max())
    data = place_data(view, placement, mesh, splits=splits, longest=longest)
    everyone = np.arange(dataset.num_clients)
    visits = rows_to_visit(placement, everyone, sample.sizes, placement.rows, client_chunk)
    return Clients(placement, data, put_sharded(visits, mesh))


def posterior_risks(measuring: Measuring, clients: Clients) -> Callable[..., Risks]:
    """Return a compiled ``(weights, key, factor, prior, mean, fisher) -> Risks`` of posteriors.

    ``weights`` are the frozen ones, on devices; ``key`` is folded with each client's id; ``factor``
    is that of the prior's scales (`leaf_scales`); ``prior`` are ``[K, ...]`` means of the priors,
    and ``mean`` those of posteriors that are not trained, whose scales are those of `laplace` by
    ``fisher``, or, with None, the prior's.
    """
    program = _program(measuring, clients, _of_posterior)
    return lambda weights, key, factor, *models: program(weights, key, factor, models)


def model_risks(measuring: Measuring, clients: Clients) -> Callable[..., Risks]:
    """Return a compiled ``(weights, params) -> Risks`` of models themselves, ``[K, ...]``."""
    program = _program(measuring, clients, _of_model)
    return lambda weights, params: program(weights, jax.random.key(0), 1.0, params)


def by_device_rows(placement: Placement, values: np.ndarray) -> np.ndarray:
    """Arrange ``[K, ...]`` values as ``[D, R, ...]``; zeros where there is no client."""
    order = by_device(placement, np.arange(len(placement.device)), len(placement.device))
    values = np.asarray(values)
    padded = np.concatenate([values, np.zeros_like(values[:1])])
    return padded[order]


def _program(measuring: Measuring, clients: Clients, of_client: Callable) -> Callable[..., Risks]:
    """Return ``(weights, key, factor, models) -> Risks``: ``of_client`` of all on their devices."""
    placement, placed, visited = clients
    mesh = measuring.mesh

    def of_device(key_data, factor, models, data, visits):
        models, splits, ids, visits = jax.tree.map(
            lambda a: a[0], (models, data.splits, data.ids, visits)
        )
        data = data._replace(splits=splits, ids=ids)
        key = jax.random.wrap_key_data(key_data)

        def of_chunk(rows):
            chunk = read_rows((models, ids, _windows(splits)), rows)
            function = functools.partial(of_client, measuring, data, key, factor)
            return map_clients(function, rows, *chunk)

        shapes = jax.eval_shape(of_chunk, visits.rows[: measuring.client_chunk])
        table = jax.tree.map(lambda a: jnp.zeros((len(ids), *a.shape[1:]), a.dtype), shapes)
        found = visit_rows(
            lambda table, rows: write_rows(table, rows, of_chunk(rows)),
            table,
            visits.rows,
            visits.counts,
            measuring.client_chunk,
        )
        return jax.tree.map(lambda a: a[None], found)

    data_specs = PlacedData(SHARDED, SHARDED, REPLICATED, REPLICATED, REPLICATED)
    mapped = jax.shard_map(
        as_argument(measuring.frozen, of_device),
        mesh=mesh,
        in_specs=(REPLICATED, REPLICATED, REPLICATED, SHARDED, data_specs, SHARDED),
        out_specs=SHARDED,
        check_vma=False,
    )
    # Compiled once: other scales of the prior are other data.
    program = jax.jit(mapped, compiler_options=compiler_options(mesh))

    def of_all(weights, key, factor, models):
        arranged = jax.tree.map(lambda a: by_device_rows(placement, a), models)
        shared = put_replicated((np.asarray(jax.random.key_data(key)), np.float32(factor)), mesh)
        found = program(weights, *shared, put_sharded(arranged, mesh), placed, visited)
        return jax.tree.map(lambda a: np.asarray(a)[placement.device, placement.row], found)

    return of_all


def _windows(splits: dict[str, Block]) -> dict[str, tuple[jax.Array, jax.Array]]:
    return {name: (block.start, block.size) for name, block in splits.items()}


def _of_posterior(measuring, data, key, factor, models, client_id, windows):
    """Return one client's `Risks` with a posterior."""
    centre, mean, fisher = models
    key = jax.random.fold_in(key, client_id)
    train_key, sample_key, test_key = jax.random.split(key, 3)
    prior = gaussian_prior(centre, factor)
    if measuring.training is None and fisher is not None:
        posterior = laplace(mean, fisher, prior, windows[SAMPLE][1])
    elif measuring.training is None:
        posterior = Gaussian(mean, in_parameters(first_posterior(prior), prior).log_scale)
    else:
        start = first_posterior(prior)
        window = _client_data(data, client_id, *windows[SAMPLE])
        trained = measuring.training.train(
            start, measuring.tx.init(start), window, train_key, prior=prior
        ).params
        finite = jnp.all(jnp.stack([jnp.isfinite(a).all() for a in jax.tree.leaves(trained)]))
        # Where training left the finite numbers, the prior itself is certified.
        trained = jax.tree.map(lambda a, b: jnp.where(finite, a, b), trained, start)
        posterior = in_parameters(trained, prior)

    def risk(split, key, draws):
        return _drawn_losses(measuring, data, split, windows, posterior, key, draws)

    test = risk(TEST, test_key, 1) if TEST in windows else ()
    return Risks(posterior, prior, risk(SAMPLE, sample_key, measuring.draws), test)


def _of_model(measuring, data, key, factor, params, client_id, windows):
    """Return one client's `Risks` with its model itself."""
    risks = {split: _model_losses(measuring, data, split, windows, params) for split in windows}
    return Risks((), (), risks[SAMPLE], risks.get(TEST, ()))


def _client_data(data, client_id, start, size):
    sample = data.splits[SAMPLE]
    window = (sample.x, sample.y, start, size, data.positions, data.mean, data.std)
    return ClientData(*window, client_id=client_id)


def _read(data, split, start, size, positions):
    """Return normalised features and labels at positions of a client's window."""
    block = data.splits[split]
    rows = start + jnp.minimum(positions, jnp.maximum(size - 1, 0))
    x = normalise(block.x.at[rows].get(mode="clip"), data.mean, data.std)
    return x, block.y.at[rows].get(mode="clip")


def _sum(losses, mask):
    return jnp.sum(jnp.where(mask, losses.astype(jnp.float32), 0.0))


def _drawn_losses(measuring, data, split, windows, posterior, key, draws):
    """Return the sum of losses over all (example, draw), each of a model drawn for it alone."""
    start, size = windows[split]
    trials = size * draws

    def of_trial(number, x, y):
        outputs = predict_drawn(
            measuring.apply, posterior, x[None], jax.random.fold_in(key, number)
        )
        return measuring.loss(outputs, y[None])[0]

    def step(i, total):
        numbers = i * TRIALS_AT_ONCE + jnp.arange(TRIALS_AT_ONCE, dtype=jnp.int32)
        x, y = _read(data, split, start, size, numbers // draws)
        return total + _sum(jax.vmap(of_trial)(numbers, x, y), numbers < trials)

    steps = (trials + TRIALS_AT_ONCE - 1) // TRIALS_AT_ONCE
    return jax.lax.fori_loop(0, steps, step, jnp.zeros(()))


def _model_losses(measuring, data, split, windows, params):
    """Return the sum of a model's losses on a split."""
    start, size = windows[split]

    def step(i, total):
        numbers = i * EXAMPLES_AT_ONCE + jnp.arange(EXAMPLES_AT_ONCE, dtype=jnp.int32)
        x, y = _read(data, split, start, size, numbers)
        return total + _sum(measuring.loss(measuring.apply(params, x), y), numbers < size)

    steps = (size + EXAMPLES_AT_ONCE - 1) // EXAMPLES_AT_ONCE
    return jax.lax.fori_loop(0, steps, step, jnp.zeros(()))
