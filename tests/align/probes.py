"""Small trees, and ways to look into a state, shared by the tests of the method."""

import jax
import jax.numpy as jnp
import numpy as np

from pflalign_jax.align import AlignState, preconditioner

SHAPES = {"dense": {"bias": (4,), "kernel": (3, 4)}, "scale": ()}
SIZE = 17
CORRECTIONS = ["probability", "sign", "none", 0.5, 1.0, 0.3]


def tree(values, dtype=jnp.float32, shapes=SHAPES):
    """Fill a tree of `shapes` from a vector, in the order of its leaves; any leading axes stay."""
    values, start = np.asarray(values), 0
    shapes, treedef = jax.tree.flatten(shapes, is_leaf=lambda s: isinstance(s, tuple))
    leaves = []
    for shape in shapes:
        size = int(np.prod(shape))
        part = values[..., start : start + size]
        leaves.append(jnp.asarray(part.reshape((*values.shape[:-1], *shape)), dtype))
        start += size
    assert start == values.shape[-1]
    return jax.tree.unflatten(treedef, leaves)


def flat(values):
    """Undo `tree` for one client, in float64."""
    return np.concatenate(
        [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(values)]
    )


def noise(seed, *lead, scale=1.0):
    """Draw vectors of SIZE coordinates."""
    return scale * np.random.default_rng(seed).standard_normal((*lead, SIZE))


def align_states(state):
    """List every AlignState inside an optax state."""
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, AlignState))
    return [leaf for leaf in leaves if isinstance(leaf, AlignState)]


def p_of(state, eps=1e-12):
    """Return P of the one AlignState inside `state`: the only place that knows how it is kept."""
    (found,) = align_states(state)
    return preconditioner(found, eps)


def assert_trees_equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        assert a.dtype == b.dtype, jax.tree_util.keystr(path)
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


def assert_trees_close(actual, expected, rtol=1e-6, atol=1e-7):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(
            np.asarray(a, np.float64),
            np.asarray(b, np.float64),
            rtol=rtol,
            atol=atol,
            err_msg=jax.tree_util.keystr(path),
        )
