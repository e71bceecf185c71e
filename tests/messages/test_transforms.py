"""Each transform's numbers and bytes by hand, and what it does around an algorithm."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from postbox import MODEL, after, dataset, mesh, post

from pflalign_jax import algorithms, datasets, messages, models
from pflalign_jax.federated import federate
from pflalign_jax.messages import chain, clip, gaussian_noise, int8, low_rank, top_k

KEY = jax.random.key(1)


def shapes(message):
    return jax.eval_shape(lambda: message)


def through(transform, *sent, key=KEY):
    """Return what the server gets of successive messages of one client."""
    state, got = transform.init(shapes(sent[0])), []
    for message in sent:
        decoded, state = transform.update(message, state, key)
        got.append(jax.tree.map(np.asarray, decoded))
    return got


def num_bytes(transform, message):
    return messages.transformed_bytes(transform, shapes(message))


def test_clip_bounds_the_norm_of_all_coordinates_together():
    message = {"a": jnp.array([3.0]), "b": jnp.array([[4.0]])}
    (got,) = through(clip(1.0), message)
    np.testing.assert_allclose([got["a"][0], got["b"][0, 0]], [0.6, 0.8], rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, through(clip(5.1), message)[0], message)
    zero = {"a": jnp.zeros(2)}
    jax.tree.map(np.testing.assert_array_equal, through(clip(1.0), zero)[0], zero)
    assert num_bytes(clip(1.0), message) == 8


@pytest.mark.parametrize("bad", [jnp.inf, jnp.nan])
def test_what_is_not_finite_stays_so(bad):
    """So that the round can leave the client out."""
    message = {"a": jnp.array([1.0, bad, 3.0, 4.0]), "b": jnp.ones((8, 8)).at[0, 0].set(bad)}
    noise = gaussian_noise(1.0)
    for transform in (clip(1.0), top_k(0.1), int8(), low_rank(1), noise, top_k(0.1, True)):
        (got,) = through(transform, message)
        assert not all(np.isfinite(a).all() for a in jax.tree.leaves(got))


def test_top_k_keeps_the_largest_of_all_coordinates():
    message = {"a": jnp.array([1.0, -5.0, 2.0]), "b": jnp.array([[0.5, 4.0]])}
    (got,) = through(top_k(0.4), message)
    assert got["a"].tolist() == [0, -5, 0] and got["b"].tolist() == [[0, 4]]
    assert num_bytes(top_k(0.4), message) == 2 * (4 + 4)
    assert num_bytes(top_k(0.41), message) == 3 * 8  # rounded up


def test_error_feedback_sends_later_what_was_left_out():
    message = {"a": jnp.array([1.0, 2.0])}
    sent = through(top_k(0.5, error_feedback=True), message, message, message)
    # e: (1, 0); then (2, 2), of equals the first; e: (0, 2); then (1, 4).
    assert [got["a"].tolist() for got in sent] == [[0, 2], [2, 0], [0, 4]]


def test_int8_is_exact_on_its_grid_and_unbiased_between():
    message = {"a": jnp.array([127.0, -127.0, 64.0, 0.0, 0.3])}
    keys = jax.random.split(KEY, 2000)
    got = jax.vmap(lambda key: int8().update(message, (), key)[0]["a"])(keys)
    assert (np.asarray(got[:, :4]) == [127, -127, 64, 0]).all()
    assert set(np.unique(got[:, 4])) == {0.0, 1.0}
    assert abs(got[:, 4].mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 2000)
    assert num_bytes(int8(), message) == 5 + 4
    zero = {"a": jnp.zeros(3), "b": jnp.zeros(0)}
    jax.tree.map(np.testing.assert_array_equal, through(int8(), zero)[0], zero)


def test_int8s_error_is_less_than_a_level():
    x = jax.random.normal(KEY, (50, 7))
    (got,) = through(int8(), x)
    assert np.abs(got - x).max() < np.abs(x).max() / 127 + 1e-6


def test_low_rank_is_exact_for_matrices_of_that_rank():
    a, b = jax.random.normal(KEY, (2, 30, 2))
    kernel = (a @ b.T).reshape(5, 6, 30)  # as a convolution's: [..., n]
    message = {"kernel": kernel, "bias": jnp.arange(3.0), "small": jnp.ones((2, 2))}
    (got,) = through(low_rank(2), message)
    np.testing.assert_allclose(got["kernel"], kernel, atol=1e-4)
    np.testing.assert_array_equal(got["bias"], message["bias"])
    np.testing.assert_array_equal(got["small"], message["small"])  # factors would be larger
    assert num_bytes(low_rank(2), message) == 4 * (2 * (30 + 30) + 3 + 4)


def test_low_rank_is_close_to_the_best_approximation():
    matrix = jax.random.normal(KEY, (40, 30)) * 0.7 ** jnp.arange(30)[None]
    rough, fine = (
        np.linalg.norm(through(low_rank(3, iterations=i), matrix)[0] - matrix) for i in (0, 8)
    )
    best = np.sqrt((np.linalg.svd(matrix, compute_uv=False)[3:] ** 2).sum())
    assert best <= fine * 1.0001 <= 1.02 * best < rough


def test_noise_has_its_deviation():
    (got,) = through(gaussian_noise(0.5), {"a": jnp.zeros(20000), "b": jnp.zeros(20000)})
    assert got["a"].std() == pytest.approx(0.5, rel=0.02)
    assert abs(np.corrcoef(got["a"], got["b"])[0, 1]) < 0.03


def test_a_chain_counts_what_is_really_sent():
    message = {"a": jnp.ones((10, 10)), "b": jnp.ones(100)}
    cases = {
        chain(): 800,
        chain(clip(1.0), top_k(0.1)): 20 * 8,
        chain(top_k(0.1), int8()): 20 * (1 + 4) + 2 * 4,
        chain(int8(), top_k(0.1)): 20 * (1 + 4) + 2 * 4,
        chain(low_rank(1), int8()): 200 + 2 * 4,  # a quantised product has no exact factors
        chain(top_k(0.1), low_rank(1)): 4 * (20 + 100),
        chain(low_rank(1), top_k(0.1)): 20 * 8,
        chain(top_k(0.1), gaussian_noise(1.0)): 800,  # noise is dense
    }
    assert {t: num_bytes(t, message) for t in cases} == cases
    assert num_bytes(chain(clip(1.0), top_k(0.1), int8()), ()) == 0


def test_a_chain_applies_in_order():
    message = {"a": jnp.array([3.0, 4.0])}
    assert through(chain(clip(1.0), top_k(0.5)), message)[0]["a"] == pytest.approx([0, 0.8])
    assert through(chain(top_k(0.5), clip(1.0)), message)[0]["a"] == pytest.approx([0, 1.0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: clip(0.0), "max_norm=0.0"),
        (lambda: top_k(0), "fraction=0"),
        (lambda: top_k(1.5), "fraction=1.5"),
        (lambda: low_rank(0), "rank=0"),
        (lambda: low_rank(1, iterations=-1), "iterations=-1"),
        (lambda: gaussian_noise(-1.0), "std=-1.0"),
    ],
)
def test_bad_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_messages_of_other_numbers_are_refused():
    data = dataset([[1.0, 2.0]])
    with pytest.raises(ValueError, match=r"message\['w'\] is int32; .* float32"):
        federate(messages.transform_messages(post(jnp.int32), clip(1.0), data), MODEL, data)


def test_the_server_gets_the_mean_of_transformed_messages():
    data = dataset([[3.0, 4.0], [0.0, 1.0]], sizes=[1, 3])
    algorithm = messages.transform_messages(post(), chain(clip(1.0), top_k(0.5, True)), data)
    federation, state, _ = after(algorithm, data, rounds=2)
    # a sends (0, .8), keeps (.6, 0), then of (1.2, .8) the first; b sends (0, 1) twice.
    np.testing.assert_allclose(state.server["w"], [1.2 / 4, 3 / 4], rtol=1e-6)
    assert federation.bytes_per_round == (2 * 8, 2 * 8)
    assert float(federation.client_state(state, 0).own) == 2
    np.testing.assert_allclose(
        federation.client_state(state, 0).memory[1].error["w"], [0, 0.8], rtol=1e-6
    )


DIGITS = datasets.digits(num_clients=5, fraction=0.15, num_new_clients=2)
SMALL = models.mlp(10, hidden=(12,))
PARAMETERS = 64 * 12 + 12 + 12 * 10 + 10
LOSSY = chain(clip(0.5), top_k(0.05, error_feedback=True), int8())


def digits_round(algorithm, rounds=1, devices=1, **options):
    federation = federate(algorithm, SMALL, DIGITS, mesh=mesh(devices), **options)
    state = federation.init(jax.random.key(0))
    for _ in range(rounds):
        state, _ = federation.run_round(state)
    return federation, state


def test_what_is_personal_is_not_touched():
    """pFLAlign's direction is its whole, exact one, whatever of it was sent."""
    plain = algorithms.pflalign(SMALL, 5.0)
    wrapped = messages.transform_messages(plain, LOSSY, DIGITS)
    (exact, before), (lossy, state) = digits_round(plain), digits_round(wrapped)
    for k in range(5):
        own = lossy.client_state(state, k).own
        jax.tree.map(np.testing.assert_array_equal, own, exact.client_state(before, k))
    kernels = [s.server.params["Dense_0"]["kernel"] for s in (before, state)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3


def test_neither_devices_nor_chunks_matter():
    algorithm = messages.transform_messages(algorithms.fedavg(SMALL, 0.1), LOSSY, DIGITS)
    servers = [
        digits_round(algorithm, 2, devices, client_chunk=chunk, cohort_size=4)[1].server
        for devices, chunk in ((1, 1), (2, 2))
    ]
    # A value may fall on the other side of a threshold and move by a level of int8.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), *servers)


@pytest.mark.parametrize(
    "name",
    [pytest.param("fedper", marks=pytest.mark.slow), "scaffold", "fedproto",
     pytest.param("local", marks=pytest.mark.slow)],
)  # fmt: skip
def test_any_algorithm_can_be_wrapped(name):
    make = {
        "fedper": lambda: algorithms.fedper(SMALL, 0.1),
        "scaffold": lambda: algorithms.scaffold(SMALL, 0.1, num_clients=5),
        "fedproto": lambda: algorithms.fedproto(SMALL, 0.1, num_classes=10),
        "local": lambda: algorithms.local(SMALL, 0.1),
    }
    sizes = {
        "fedper": 64 * 12 + 12,
        "scaffold": 2 * PARAMETERS,
        "fedproto": 10 * 12 + 10,
        "local": 0,
    }
    algorithm = messages.transform_messages(make[name](), top_k(0.1, True), DIGITS)
    federation, state = digits_round(algorithm, 2)
    assert federation.bytes_per_round[0] == 5 * 8 * -(-sizes[name] // 10)
    federation.evaluate_new(state)


def test_only_the_message_is_reduced():
    """v, u, P and directions have the parameters' shapes: these are reduced once, as message."""
    plain = algorithms.pflalign(SMALL, 5.0)
    for algorithm in (plain, messages.transform_messages(plain, LOSSY, DIGITS)):
        federation = federate(algorithm, SMALL, DIGITS, mesh=mesh(4))
        text = federation.lower_round(federation.init(jax.random.key(0))).as_text()
        reduced = re.findall(r"stablehlo\.all_reduce.*?\}\) : \((.*?)\) ->", text, re.S)
        floats = [
            np.prod([int(n) for n in shape.split("x")[:-1]], dtype=int)
            for operands in reduced
            for shape in re.findall(r"tensor<([^>]*f32)>", operands)
        ]
        # The message, a weight, and a total and weight of the loss.
        assert sum(floats) == PARAMETERS + 3
        assert "all_gather" not in text and "all_to_all" not in text
