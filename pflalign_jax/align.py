r"""pFLAlign's two mechanisms as pure functions: local gradient alignment and realignment.

One local step of one client, per coordinate, with a minibatch gradient $g$ at the local
model $w_i$, the client's direction $\Delta_i$, and $T$ local steps this round:

$$
\begin{split}
m &\leftarrow \beta m + (1-\beta) g \quad\text{(reset to 0 every round)} \\
v &\leftarrow \beta v + (1-\beta) g^2 \quad\text{(kept across rounds)} \\
P &\leftarrow \alpha P + (1-\beta) m^2 / (v+\epsilon), \quad
    \alpha = 1 - (1-\beta) g^2 / (v+\epsilon) \quad\text{(kept across rounds)} \\
z &\leftarrow |m| / \sqrt{2 \max(v - m^2, 0) + \epsilon} \\
\gamma &\leftarrow \tfrac12 - \tfrac12 \operatorname{erf}(z)\operatorname{sign}(-m\,\Delta_i) \\
w_i &\leftarrow w_i - \eta P g - \gamma \Delta_i / T
\end{split}
$$

Around the steps: personalised initialisation $w_i \leftarrow w + \Delta_i$ (`realign`) and
$\Delta_i \leftarrow w_i - w$ (`direction`), with `w` the global model of that round.

The idea and the claims are those of D. Kim and G. Lee, "Personalized Federated Learning for
Gradient Alignment", arXiv:2605.02143; its full text was not available to this project. The update
is Algorithm 1 as a public PyTorch reimplementation (github.com/kdwaha/Flex) states it.

How P is computed here: multiplied by $v+\epsilon$, the recursion says that $(v+\epsilon) P$ is
the exponential moving average (EMA) of $m^2$, up to $\epsilon$. So the state keeps that average,
$u \leftarrow \beta u + (1-\beta) m^2$, and $P = \min(u / (v+\epsilon), 1)$ needs one
division and one pass over memory. The two agree to 1e-10 wherever $v \gg \epsilon$ and the
recursion stays in [0, 1]. The recursion can leave this interval: when a gradient vanishes, $g^2$
is 0 at once but $m^2$ is not, and the recursion climbs as far as $1 + \beta$. The cap at 1 is
ours: P is a shrinkage factor and should not make a step longer.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.scipy.special import erf

from pflalign_jax.align_checks import (
    check_hyperparameters,
    check_num_steps,
    check_one_number,
    check_real,
    check_same_structure,
    nonzero_eps,
)

Params = Any
"""A pytree of arrays, one client's model (or stacked, ``[K, ...]``, where said)."""


class AlignState(NamedTuple):
    """State of `align_transform` for one client; leaves shaped like the parameters.

    Moments are float32 where parameters are of lower precision.

    Attributes:
      count: int32 scalar, local steps so far over all rounds; feeds learning-rate schedules.
      m: EMA of the gradient ``g``, zero at the start of every round (`new_round`). May be None
        in a state that is only stored between rounds; `new_round` makes it again.
      v: EMA of ``g**2``, kept across rounds.
      u: EMA of ``m**2``, kept across rounds; `preconditioner` turns it into ``P``.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count
    m: Params
    v: Params
    u: Params


def preconditioner(state: Any, eps: float = 1e-12) -> Params:
    """Return the preconditioner ``P = min(u / (v + eps), 1)`` of a state, a tree in [0, 1].

    Args:
      state: an `AlignState`, or any optax state that holds one (chained, masked, partitioned); may
        be stacked over clients.
      eps: as given to `align_transform`.

    Returns:
      A tree like the parameters; `optax.MaskedNode` where the transform is masked.

    Raises:
      ValueError: if there is no `AlignState` in ``state``, or more than one.

    >>> state = align_transform().init({"w": jnp.ones(2)})
    >>> print(preconditioner((optax.EmptyState(), state)))
    {'w': Array([0., 0.], dtype=float32)}
    """
    align_state, *others = _align_states(state, "preconditioner")
    if others:
        raise ValueError(
            f"preconditioner: {1 + len(others)} AlignStates found in a state of type "
            f"{type(state).__name__}; pass one of them"
        )
    # u and v may be stored in bfloat16: their quotient is formed in float32, as in a step.
    return jax.tree.map(
        lambda u, v: _preconditioner(u.astype(_wide(u)), v.astype(_wide(v)), eps),
        align_state.u,
        align_state.v,
    )


def _preconditioner(u: jax.Array, v: jax.Array, eps: jax.typing.ArrayLike) -> jax.Array:
    return jnp.minimum(u / (v + eps), 1)


def _is_align(node: Any) -> bool:
    return isinstance(node, AlignState)


def _align_states(state: Any, caller: str) -> list[AlignState]:
    """Return every `AlignState` inside an optax state; an error if there is none."""
    found = [leaf for leaf in jax.tree.leaves(state, is_leaf=_is_align) if _is_align(leaf)]
    if not found:
        raise ValueError(
            f"{caller}: no AlignState found in a state of type {type(state).__name__}; "
            "pass the optimiser state of a chain that contains align_transform()"
        )
    return found


def align_transform(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    beta: float = 0.9,
    eps: float = 1e-12,
    precondition: bool = True,
    correction: str | float = "probability",
    memory_dtype: str | None = None,
    require_direction: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Return the local step of pFLAlign: updates ``-eta * P * g - gamma * direction / T``.

    ``P`` shrinks noisy coordinates: its mean is often well below 0.1, so a good learning rate is 10
    to 100 times that of SGD. Without ``direction`` the update is the preconditioned step alone.

    ``update(grads, state, params=None, *, direction=None, num_steps=None)`` takes two extra
    arguments; both may be traced:

    * ``direction``: tree like the parameters, the client's direction $\Delta_i$;
    * ``num_steps``: scalar, the number of local steps T of this client in this round. Under
      `jax.vmap` over stacked clients, each client has its own.

    Args:
      learning_rate: step size ``eta`` >= 0, or an optax schedule of the client's step count.
      beta: decay of the three averages, in [0, 1).
      eps: added to denominators, > 0.
      precondition: False steps along ``g`` instead of ``P * g``.
      correction: how much of the direction a round removes, the factor gamma:
        ``"probability"`` (the method), ``"sign"`` (½ + ½ sign(m Δ)), ``"none"`` (0), or a
        constant in [0, 1].
      memory_dtype: dtype of the stored ``v`` and ``u``, a client's memory across rounds;
        ``"bfloat16"`` halves their size. Arithmetic stays in float32; after 200 noisy steps the
        error of P was 0.5 % (root mean square), at most 1.1 %, that of the updates 0.5 %. None:
        float32, or float64 for float64 parameters.
      require_direction: True makes an ``update`` without ``direction`` an error. Some optax
        wrappers drop extra arguments silently, which leaves the preconditioned step alone.

    Returns:
      An `optax.GradientTransformationExtraArgs`; its updates have the gradients' dtype.

    Raises:
      ValueError: for a hyperparameter out of range; in ``init`` and ``update`` for leaves that are
        not real floating point, trees that do not match, and ``num_steps`` missing or no number T.

    References:
      Kim and Lee, arXiv:2605.02143, Algorithm 1 (see the module's docstring).

    >>> tx = align_transform(learning_rate=0.2)
    >>> params = {"w": jnp.array([1.0])}
    >>> state = tx.init(params)
    >>> updates, state = tx.update(
    ...     {"w": jnp.array([2.0])}, state, direction={"w": jnp.array([0.4])}, num_steps=5)
    >>> params = optax.apply_updates(params, updates)
    >>> print(f"{preconditioner(state)['w'][0]:.4f} {params['w'][0]:.4f}")
    0.0100 0.9456
    """
    eps = nonzero_eps(eps)
    check_hyperparameters(learning_rate, beta, eps, correction, memory_dtype)

    def init(params):
        def zeros(dtype=None):
            return jax.tree.map(lambda x: jnp.zeros_like(x, dtype=dtype or _wide(x)), params)

        check_real(params, "parameters")
        # m lives for one round and is not stored, so it keeps full precision.
        return AlignState(
            jnp.zeros((), jnp.int32), zeros(), zeros(memory_dtype), zeros(memory_dtype)
        )

    def update(updates, state, params=None, *, direction=None, num_steps=None, **extra):
        del params, extra
        if state.m is None:
            raise ValueError("align_transform: the state has m=None; call new_round(state) first")
        updates = jax.tree.map(jnp.asarray, updates)  # Python's numbers have no dtype
        check_real(updates, "gradients")
        check_same_structure(state.v, updates, "state", "gradients")
        direction = _checked_direction(direction, num_steps, updates, require_direction)
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        check_one_number("learning_rate", rate)

        def leaf_step(g, m, v, u, delta=None):
            dtype, out_dtype, stored = m.dtype, g.dtype, v.dtype
            b, one_minus_b, e, eta = (jnp.asarray(x, dtype) for x in (beta, 1.0 - beta, eps, rate))
            g, v, u = (a.astype(dtype) for a in (g, v, u))
            m = b * m + one_minus_b * g
            v = b * v + one_minus_b * g * g
            u = b * u + one_minus_b * m * m
            step = -eta * (_preconditioner(u, v, e) * g if precondition else g)
            if delta is not None and correction != "none":
                delta, steps = jnp.asarray(delta, dtype), jnp.maximum(num_steps, 1).astype(dtype)
                step -= removed(correction, m, v, e, delta) * (1 / steps)
            return step.astype(out_dtype), m, v.astype(stored), u.astype(stored)

        trees = (updates, state.m, state.v, state.u) + (() if direction is None else (direction,))
        treedef = jax.tree.structure(updates)
        columns = zip(*(jax.tree.leaves(tree) for tree in trees), strict=True)
        steps = [leaf_step(*leaves) for leaves in columns]
        step, m, v, u = (treedef.unflatten([s[i] for s in steps]) for i in range(4))
        return step, AlignState(optax.safe_increment(state.count), m, v, u)

    return optax.GradientTransformationExtraArgs(init, update)


def removed(
    correction: str | float, m: jax.Array, v: jax.Array, eps: float, delta: jax.Array
) -> jax.Array:
    """Return γ Δ, the part of the direction that a round's steps remove, for each coordinate.

    γ = ½ + ½ erf(|z|) sign(m Δ). As erf is odd, γ Δ = ½ (Δ + erf(z) |Δ|) if z has the sign of m.

    Args:
      correction: as given to `align_transform`.
      m, v: averages of g and g², after this step's gradient.
      eps: as given to `align_transform`.
      delta: the direction Δ.
    """
    if correction == "none":
        return jnp.zeros_like(delta)
    if correction == "sign":
        return 0.5 * (delta + jnp.sign(m) * jnp.abs(delta))
    if correction == "probability":
        # v is an average of g² and may be below m² by rounding: without the maximum, z is NaN.
        z = m * jax.lax.rsqrt(2 * jnp.maximum(v - m * m, 0) + eps)
        return 0.5 * (delta + erf(z) * jnp.abs(delta))
    return jnp.asarray(correction) * delta


def new_round(state: Any, *, required: bool = True) -> Any:
    """Start a client's round: ``m`` becomes 0 in every `AlignState`; ``v``, ``u``, count stay.

    Args:
      state: an `AlignState`, or any optax state that holds some (chained, masked, partitioned).
      required: False: a state without an `AlignState` is returned unchanged.

    Returns:
      A state of the same structure, with ``m`` zeros like ``v`` (also where it was None).

    Raises:
      ValueError: if an `AlignState` is required and ``state`` holds none.

    >>> state = align_transform().init({"w": jnp.ones(2)})._replace(m=None)
    >>> print(new_round((state, optax.EmptyState()))[0].m)
    {'w': Array([0., 0.], dtype=float32)}
    """
    if required:
        _align_states(state, "new_round")

    def reset(node: Any) -> Any:
        if not _is_align(node):
            return node
        # Zeros like v, not like m: m is None in a state that was stored between rounds.
        return node._replace(m=jax.tree.map(lambda v: jnp.zeros_like(v, dtype=_wide(v)), node.v))

    return jax.tree.map(reset, state, is_leaf=_is_align)


def realign(global_params: Params, delta: Params) -> Params:
    """Return the personalised initialisation ``w + Δ``.

    Args:
      global_params: tree of the global model ``w``.
      delta: the client's direction, a tree of the same shapes; or the directions of many clients,
        with leaves ``[K, ...]``.

    Returns:
      ``w + Δ`` in the dtypes of ``w``; stacked ``[K, ...]`` if ``delta`` is.

    Raises:
      ValueError: for trees that do not match, with the path of the first leaf that differs.
    """
    check_same_structure(delta, global_params, "delta", "global_params", stacked=True)
    return jax.tree.map(
        lambda w, d: jnp.broadcast_to(w, jnp.shape(d)) + jnp.asarray(d, jnp.result_type(w)),
        global_params,
        delta,
    )


def direction(local_params: Params, global_params: Params) -> Params:
    """Return a client's direction ``Δ = w_i - w``, with ``w`` as received in this round.

    Args:
      local_params: the client's local model; or the models of many clients, with leaves
        ``[K, ...]``.
      global_params: tree of the global model.

    Returns:
      ``w_i - w`` in the dtypes of ``w_i``; stacked ``[K, ...]`` if ``local_params`` is.

    Raises:
      ValueError: for trees that do not match, with the path of the first leaf that differs.
    """
    check_same_structure(local_params, global_params, "local_params", "global_params", stacked=True)
    return jax.tree.map(
        lambda wi, w: wi - jnp.broadcast_to(w, jnp.shape(wi)).astype(jnp.result_type(wi)),
        local_params,
        global_params,
    )


def aligned_part(tree: Params, state: Any) -> Params:
    """Return ``tree`` where `align_transform` steps, and 0 elsewhere.

    For a transform inside `optax.masked` or `optax.multi_transform`: a direction of leaves that it
    does not step would be added by `realign` every round, and no step would ever remove any of it.
    So keep ``aligned_part(direction(local_params, global_params), state)``.

    Args:
      tree: like the parameters, as a client's direction; or stacked, with leaves ``[K, ...]``.
      state: an `AlignState`, or any optax state that holds some (chained, masked, partitioned).

    Returns:
      A tree of the same structure, shapes and dtypes.

    Raises:
      ValueError: if ``state`` holds no `AlignState`, or one with a leaf that ``tree`` has not.

    >>> tx = optax.masked(align_transform(), {"body": True, "head": False})
    >>> delta = {"body": jnp.ones(2), "head": jnp.ones(2)}
    >>> print(aligned_part(delta, tx.init(delta)))
    {'body': Array([1., 1.], dtype=float32), 'head': Array([0., 0.], dtype=float32)}
    """
    # By their paths, as nnx.Optimizer keeps a state in variables of another type than parameters.
    paths = jax.tree_util.tree_leaves_with_path
    aligned = {p for found in _align_states(state, "aligned_part") for p, _ in paths(found.v)}
    if unknown := aligned - {path for path, _ in paths(tree)}:
        names = sorted(map(jax.tree_util.keystr, unknown))
        raise ValueError(
            f"aligned_part: align_transform steps {names[0]}, which is not in the tree"
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if path in aligned else jnp.zeros_like(leaf), tree
    )


def _wide(x: jax.Array) -> jnp.dtype:
    """Return the dtype to compute in: float32, or float64 for float64 parameters."""
    return jnp.promote_types(jnp.result_type(x), jnp.float32)


def _unmasked(tree: Any, updates: Any) -> Any:
    """Drop from ``tree`` what `optax.masked` has hidden in ``updates``.

    `optax.masked` masks updates and params, but passes extra arguments, as the direction, whole.
    """

    def is_masked(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode)

    # Without masks the tree is left alone, so that a mismatch is found by check_same_structure.
    if not any(map(is_masked, jax.tree.leaves(updates, is_leaf=is_masked))):
        return tree
    return jax.tree.map(lambda u, t: u if is_masked(u) else t, updates, tree, is_leaf=is_masked)


def _checked_direction(direction: Any, num_steps: Any, updates: Any, required: bool) -> Any:
    """Return the direction without what is masked in ``updates``; an error if it is not right."""
    if direction is not None:
        check_num_steps(num_steps)
        direction = _unmasked(direction, updates)
        check_same_structure(direction, updates, "direction", "gradients")
    elif required:
        raise ValueError(
            "align_transform: no direction has arrived, and require_direction=True; pass "
            "update(..., direction=delta, num_steps=T). If you did, a wrapper around "
            "align_transform drops extra arguments, as optax.MultiSteps inside optax.chain does"
        )
    return direction
