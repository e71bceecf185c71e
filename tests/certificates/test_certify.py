"""Certificates of federations: refused where not valid, the same on other devices."""

import jax
import numpy as np
import pytest

from pflalign_jax import algorithms, federate, models
from pflalign_jax.certificates import (
    CertificateError,
    Gaussian,
    certify,
    gaussian_kl,
    holdout,
    leaf_scales,
)
from pflalign_jax.datasets import Examples, partition_examples
from pflalign_jax.federated import proximal

MODEL = models.mlp(3, hidden=(4,))
RNG = np.random.default_rng(0)
Y = RNG.integers(0, 3, 600).astype(np.int32)
X = (np.eye(3)[Y] * 3 + RNG.normal(size=(600, 3))).astype(np.float32)
OPTIONS = {
    "partition": "dirichlet",
    "alpha": 1.0,
    "num_clients": 4,
    "num_new_clients": 2,
    "split_by": "random",
    "bound_fraction": 0.3,
    "test_fraction": 0.3,
    "min_examples": 30,
}
QUICK = {"local_epochs": 30, "batch_size": 10, "draws": 2, "scales": (0.3,)}


def data(**options):
    return partition_examples(Examples("blobs", X, Y, 3), **{**OPTIONS, **options})


def mesh(count):
    return jax.sharding.Mesh(np.array(jax.devices()[:count]), ("clients",))


def trained(algorithm=None, rounds=2, devices=1, dataset=None, **options):
    algorithm = algorithms.pflalign(MODEL, 3.0) if algorithm is None else algorithm
    dataset = data() if dataset is None else dataset
    federation = federate(algorithm, MODEL, dataset, mesh=mesh(devices), **options)
    state = federation.init(jax.random.key(0))
    for _ in range(rounds):
        state, _ = federation.run_round(state)
    return federation, state


@pytest.fixture(scope="module")
def run():
    return trained()


def test_new_clients_are_certified_from_the_received_model(run):
    federation, state = run
    before = jax.tree.map(np.array, (state.server, state.clients))
    found = certify(federation, state, "new", **QUICK)
    new = federation.dataset.new_clients
    splits = (*(new.splits[name] for name in ("train", "validation")), new.bound)
    assert found.clients.n.tolist() == sum(owned.sizes for owned in splits).tolist()
    assert (found.clients.kl > 0).all() and (found.clients.empirical < 0.5).all()
    assert (found.clients.bound > found.test).all() and (found.clients.bound < 1).all()
    assert found.pooled.n == found.clients.n.sum()
    assert found.pooled.bound < found.clients.bound.max()
    assert "never took part" in found.clients.why_valid and found.clients.delta == 0.05
    jax.tree.map(np.testing.assert_array_equal, before, (state.server, state.clients))


def test_a_grid_of_scales_costs_a_part_of_delta(run):
    federation, state = run
    options = {**QUICK, "model": "received"}
    one = certify(federation, state, **{**options, "scales": (0.3,), "delta": 0.025})
    two = certify(federation, state, **{**options, "scales": (0.3, 10.0), "delta": 0.05})
    np.testing.assert_array_equal(one.clients.kl, [0, 0])  # the prior itself
    assert two.clients.delta == 0.05 and two.scales.tolist() == [0.3, 0.3]
    np.testing.assert_array_equal(one.clients.bound, two.clients.bound)
    np.testing.assert_array_equal(one.test, two.test)


def test_held_out_bounds_count_the_errors_of_the_adapted_model(run):
    federation, state = run
    found = certify(federation, state, "train", "holdout")
    dataset, params = federation.dataset, federation.adapted_params(state)
    for k in range(dataset.num_clients):
        own = jax.tree.map(lambda a, k=k: a[k], params)
        mine = dataset.bound.of_client(k)
        logits = MODEL.apply(own, (dataset.x[mine] - dataset.mean) / dataset.std)
        errors = int((np.argmax(logits, -1) != dataset.y[mine]).sum())
        assert found.clients.bound[k] == holdout(errors, len(mine)).bound
    assert found.clients.kl.tolist() == [0] * dataset.num_clients


def test_clients_that_train_start_from_their_own_model(run):
    federation, state = run
    found = certify(federation, state, "train", model="adapted", **QUICK)
    assert found.clients.n.tolist() == federation.dataset.bound.sizes.tolist()
    scale = federation.all_params(state)  # KL is the squared way from it, in units of the scale
    adapted = federation.adapted_params(state)
    for k in range(4):
        total = 0.0
        rms = [np.sqrt(np.mean(a[k] ** 2)) for a in jax.tree.leaves(scale)]
        whole = np.sqrt(
            sum((a[k] ** 2).sum() for a in jax.tree.leaves(scale))
            / sum(a[k].size for a in jax.tree.leaves(scale))
        )
        for a, b, r in zip(jax.tree.leaves(adapted), jax.tree.leaves(scale), rms, strict=True):
            total += ((a[k] - b[k]) ** 2).sum() / (2 * (0.3 * max(r, 0.01 * whole)) ** 2)
        assert found.clients.kl[k] == pytest.approx(total, rel=1e-3)


def test_another_bounded_loss_is_certified_too(run):
    federation, state = run

    def half(outputs, y):
        return 0.5 * (outputs.argmax(-1) != y)

    found = certify(federation, state, "train", "holdout", loss=half)
    zero_one = certify(federation, state, "train", "holdout")
    np.testing.assert_allclose(found.clients.empirical, zero_one.clients.empirical / 2)


@pytest.mark.slow
def test_certificates_do_not_depend_on_devices_or_chunk(run):
    """Draws are keyed by clients and examples; only roundings differ."""
    found = [certify(*run, **QUICK, model=model) for model in ("bound", "received")]
    for options in ({"devices": 3}, {"client_chunk": 2}, {"client_state_in": "host"}):
        federation, state = trained(**options)
        for first, model in zip(found, ("bound", "received"), strict=True):
            other = certify(federation, state, **QUICK, model=model)
            np.testing.assert_allclose(first.clients.kl, other.clients.kl, rtol=1e-2, atol=1e-6)
            np.testing.assert_allclose(first.clients.bound, other.clients.bound, atol=0.02)


@pytest.mark.slow
def test_low_rank_adapters_have_a_divergence_of_their_own_parameters_alone():
    """Frozen weights are an argument of the program, and cost nothing."""
    base = models.mlp(3, hidden=(16,))
    weights = base.init(jax.random.key(5), np.zeros((1, 3), np.float32))
    model = models.lora(base, jax.tree.map(np.asarray, weights), rank=1)
    federation = federate(algorithms.pflalign(model, 3.0), model, data(), mesh=mesh(2))
    state, _ = federation.run_round(federation.init(jax.random.key(0)))
    found = certify(federation, state, "new", **QUICK)
    assert np.isfinite(found.clients.kl).all() and (found.clients.bound < 1).all()
    params = federation.adapted_params(state, "new")
    count = sum(a[0].size for a in jax.tree.leaves(params))
    assert count < sum(a.size for a in jax.tree.leaves(weights))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"clients": "train", "split": "train"}, "split='train' of clients='train' took part in"),
        ({"clients": "train", "split": "all"}, "split='all' of clients='train' took part in"),
        ({"clients": "train", "split": "validation"}, "rounds and step sizes are chosen on"),
        ({"kind": "holdout", "split": "train"}, "the adapted model was trained on these"),
        ({"kind": "pac"}, r"kind 'pac' is unknown; choose from \('pac_bayes', 'holdout'\)"),
        ({"kind": "holdout", "model": "bound"}, "model of kind='holdout', 'bound' is unknown"),
        ({"split": "some"}, "split 'some' is unknown"),
    ],
)
def test_what_is_not_valid_is_refused_by_name(run, asked, message):
    with pytest.raises(CertificateError, match=message):
        certify(*run, **asked)


@pytest.mark.parametrize(
    ("options", "asked", "message"),
    [
        ({"split_by": "stratified"}, {}, "split_by='stratified' and is no i.i.d. sample"),
        ({"split_by": "temporal"}, {"split": "test"}, "split_by='temporal' and is no i.i.d."),
        ({"bound_fraction": 0.0}, {"clients": "train"}, "keeps no examples for bounds"),
        ({"num_new_clients": 0}, {}, "has no new clients"),
    ],
)
def test_datasets_without_a_valid_sample_are_refused(options, asked, message):
    federation, state = trained(algorithms.fedavg(MODEL, 0.1), 0, dataset=data(**options))
    with pytest.raises(CertificateError, match=message):
        certify(federation, state, **asked)


def test_splits_of_unknown_origin_and_numbers_out_of_range_are_refused(run):
    unknown = data()._replace(options=None)
    federation, state = trained(algorithms.fedavg(MODEL, 0.1), 0, dataset=unknown)
    with pytest.raises(CertificateError, match="how split='all' was drawn is not known"):
        certify(federation, state)
    for wrong in ({"scales": ()}, {"scales": (0.0,)}, {"delta": 0.0}, {"draws": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
            certify(*run, **wrong)


@pytest.mark.slow
def test_a_model_that_remembers_labels_has_no_gaussian_around_it():
    federation, state = trained(algorithms.knnper(MODEL, 0.1), 0)
    with pytest.raises(CertificateError, match=r"int32 at \.labels.*kind='holdout'"):
        certify(federation, state)


def test_a_model_that_is_not_finite_has_no_certificate():
    federation, state = trained(algorithms.fedavg(MODEL, 0.1), 0)
    server = jax.tree.map(lambda a: a * np.nan, state.server)
    with pytest.raises(CertificateError, match="2 clients receive models that are not finite"):
        certify(federation, state._replace(server=server), model="received")


@pytest.mark.parametrize("clients", ["new", pytest.param("train", marks=pytest.mark.slow)])
def test_second_moments_of_the_steps_give_the_scales(run, clients):
    federation, state = run
    found = certify(federation, state, clients, model="laplace", **QUICK)
    stages = ("unseen" if clients == "new" else "received", "adapted", "fisher")
    trees = [federation.all_params(state, clients, stage) for stage in stages]
    for k, n in enumerate(found.clients.n):
        received, adapted, fisher = (jax.tree.map(lambda a, k=k: a[k], tree) for tree in trees)
        scale = leaf_scales(received, 0.3)
        posterior = jax.tree.map(lambda s, f, n=n: 1 / np.sqrt(1 / s**2 + n * f), scale, fisher)
        log_scale = jax.tree.map(np.log, posterior)
        kl = gaussian_kl(Gaussian(adapted, log_scale), received, scale)
        assert found.clients.kl[k] == pytest.approx(kl, rel=1e-3)
        # Which is the least of n times the quadratic risk plus the divergence.
        for factor in (0.9, 1.1):
            other = jax.tree.map(lambda a, c=factor: a + np.log(c), log_scale)
            risks = [
                0.5 * n * sum(map(np.sum, jax.tree.leaves(jax.tree.map(risk_of, fisher, scales))))
                for scales in (log_scale, other)
            ]
            worse = gaussian_kl(Gaussian(adapted, other), received, scale)
            assert risks[0] + kl < risks[1] + worse
    plain = certify(federation, state, clients, model="adapted", **QUICK)
    assert (found.clients.empirical < plain.clients.empirical + 0.1).all()


def risk_of(fisher, log_scale):
    """Return what noise adds to a quadratic loss, twice and for each parameter."""
    return fisher * np.exp(2 * np.asarray(log_scale, float))


def test_scales_from_second_moments_are_refused_where_none_are_kept():
    others = (
        algorithms.fedavg(MODEL, 0.1),
        algorithms.pflalign(MODEL, 0.1, local_optimizer="adamw"),
        algorithms.pflalign(MODEL, 0.1, before=proximal(0.1)),
    )
    for algorithm in others:
        federation, state = trained(algorithm, 0)
        with pytest.raises(CertificateError, match="and this algorithm keeps none"):
            certify(federation, state, model="laplace")
        with pytest.raises(ValueError, match="stage='fisher': this algorithm keeps no averages"):
            federation.all_params(state, "new", "fisher")
