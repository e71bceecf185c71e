"""Predictions drawn by units of layers are distributed as those of drawn parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pflalign_jax import models
from pflalign_jax.certificates import Gaussian
from pflalign_jax.certificates.drawn_predictions import predict_drawn
from pflalign_jax.certificates.gaussians import draw

DRAWS = 40_000
KEYS = jax.random.split(jax.random.key(1), DRAWS)


def posterior(params, log_scale=-0.7):
    """Return a Gaussian whose scales differ from entry to entry, around parameters, all not 0."""
    mean = jax.tree.map(lambda a: a + 0.1, params)
    return Gaussian(mean, jax.tree.map(lambda a: log_scale + 0.5 * jnp.sin(9 * a), mean))


def moments(outputs):
    """Return means, covariances and third moments of outputs ``[N, 1, C]``."""
    outputs = np.asarray(outputs, float).reshape(len(outputs), -1)
    centred = outputs - outputs.mean(0)
    return outputs.mean(0), np.cov(outputs.T), (centred**3).mean(0)


def by_units(apply, gaussian, x):
    return jax.jit(jax.vmap(lambda key: predict_drawn(apply, gaussian, x, key)))(KEYS)


def by_parameters(apply, gaussian, x):
    return jax.jit(jax.vmap(lambda key: apply(draw(gaussian, jax.random.fold_in(key, 1)), x)))(KEYS)


def random_numbers(apply, gaussian, x):
    """Return how many normal numbers a prediction draws."""
    program = jax.make_jaxpr(lambda key: predict_drawn(apply, gaussian, x, key))(KEYS[0])
    drawn = [e for e in program.eqns if e.params.get("name") == "_normal"]
    return sum(each.outvars[0].aval.size for each in drawn)


def mlp_case():
    model = models.mlp(2, hidden=(5, 4))
    x = jnp.asarray([[0.5, -1.0, 2.0]])
    return model.apply, posterior(model.init(jax.random.key(0), x)), x


def test_an_mlp_predicts_the_same_in_distribution():
    apply, gaussian, x = mlp_case()
    found, wanted = (moments(way(apply, gaussian, x)) for way in (by_units, by_parameters))
    spread = np.sqrt(np.diag(wanted[1]))
    np.testing.assert_allclose(found[0], wanted[0], atol=0.03 * spread.max())
    np.testing.assert_allclose(found[1], wanted[1], atol=0.04 * spread.max() ** 2)
    np.testing.assert_allclose(found[2], wanted[2], atol=0.4 * spread.max() ** 3)
    # A number for each unit and each bias.
    assert random_numbers(apply, gaussian, x) == 2 * (5 + 4 + 2)


def twice(params, x):
    """Use a kernel twice: the second layer's features depend on it."""
    return jnp.tanh(x @ params["w"]) @ params["w"]


def rows(params, x):
    """Use a kernel on three rows of one example, which share it."""
    return (x.reshape(3, 1) @ params["v"]).reshape(1, -1)


def scanned(params, x):
    """Use a kernel in a loop."""
    return jax.lax.fori_loop(0, 2, lambda i, h: jnp.tanh(h @ params["w"]), x)


def transposed(params, x):
    return x @ params["w"].T


def product(params, x):
    """Multiply two parameters, one of which has one row."""
    return x * (params["v"] @ params["w"][:1, :1])


@pytest.mark.parametrize("apply", [twice, rows, scanned, transposed, product])
def test_a_kernel_with_any_other_use_is_drawn(apply):
    params = {"w": jnp.eye(3) * 0.3, "v": jnp.full((1, 1), 0.4)}
    gaussian, x = posterior(params), jnp.asarray([[0.5, -1.0, 2.0]])
    assert random_numbers(apply, gaussian, x) >= {rows: 1, product: 10}.get(apply, 9)


def test_kernels_on_the_left_and_of_any_shape_are_read():
    def apply(params, x):
        return jnp.einsum("bi,hij->bhj", x, params["w"]).reshape(1, -1)

    gaussian, x = posterior({"w": jnp.ones((2, 3, 4))}), jnp.asarray([[0.5, -1.0, 2.0]])
    assert random_numbers(apply, gaussian, x) == 8
    found, wanted = (moments(way(apply, gaussian, x)) for way in (by_units, by_parameters))
    spread = float(np.sqrt(np.diag(wanted[1])).max())
    np.testing.assert_allclose(found[0], wanted[0], atol=0.03 * spread)
    np.testing.assert_allclose(found[1], wanted[1], atol=0.04 * spread**2)
