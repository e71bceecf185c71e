r"""Predictions of models that are drawn from a posterior, without drawing more than they need.

A dense layer whose kernel has independent normal entries maps one example, whose features do not
depend on that kernel, to independent normal units: $xW$ has the means $x \mu$ and the variances
$x^2 \sigma^2$ (squares of entries). To draw the units is to draw the kernel, as far as this example
can tell: the prediction has the same distribution, and takes ``[out]`` random numbers instead of
``[in, out]``. It holds for a single example only: two that shared the kernel would be dependent.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var
from jax.extend.core.primitives import dot_general_p

from pflalign_jax.certificates.gaussians import Gaussian, draw_leaf


def predict_drawn(
    apply: Callable[[Any, jax.Array], jax.Array], posterior: Gaussian, x: jax.Array, key: jax.Array
) -> jax.Array:
    """Return ``apply(params, x)`` with parameters that are drawn from a posterior for this call.

    A kernel that nothing but one dense layer uses, on one row of features, is not drawn, but the
    units of the layer are; all other leaves are drawn. The program of ``apply`` is read for it, so
    it may be written in any framework.

    Args:
      apply: of one array ``[1, ...]``.
      posterior: of its parameters.
      x: ``[1, ...]``, one example.
      key: consumed.
    """
    leaves, treedef = jax.tree.flatten(posterior.mean)
    scales = jax.tree.leaves(posterior.log_scale)
    parts = zip(leaves, scales, jax.random.split(key, len(leaves)), strict=True)
    closed = jax.make_jaxpr(lambda leaves: apply(jax.tree.unflatten(treedef, leaves), x))(leaves)
    program = closed.jaxpr
    kernels, values = {}, dict(zip(program.constvars, closed.consts, strict=True))
    for var, part in zip(program.invars, parts, strict=True):
        if (layer := _layer_of(var, program)) is None:
            values[var] = draw_leaf(*part)
        else:
            kernels[id(layer)] = (var, part)

    def read(var: Var | Literal) -> Any:
        return var.val if isinstance(var, Literal) else values[var]

    for equation in program.eqns:
        if id(equation) in kernels:
            kernel, part = kernels[id(equation)]
            features = next(var for var in equation.invars if var is not kernel)
            found = [_drawn_units(equation, kernel, part, read(features))]
        else:
            inputs = [var for var in equation.invars if not isinstance(var, Literal)]
            outputs = equation.outvars
            step = program.replace(constvars=(), invars=inputs, outvars=outputs, eqns=[equation])
            found = jax.core.eval_jaxpr(step, (), *map(read, inputs))
        values.update(zip(equation.outvars, found, strict=True))
    return read(program.outvars[0])


def _layer_of(kernel: Var, program: Jaxpr) -> JaxprEqn | None:
    """Return the product of one row and the kernel, if it is the only use of the kernel."""
    uses = [each for each in program.eqns if any(var is kernel for var in each.invars)]
    if len(uses) != 1 or any(var is kernel for var in program.outvars):
        return None
    (product,) = uses
    if product.primitive is not dot_general_p:
        return None
    contracted, batch = product.params["dimension_numbers"]
    side = 0 if product.invars[1] is kernel else 1
    features: Any = product.invars[side]
    shape = features.aval.shape
    one_row = not batch[side] and math.prod(shape) == math.prod(shape[i] for i in contracted[side])
    # A product of two parameters has no features: both are drawn.
    return product if one_row and features not in program.invars else None


def _drawn_units(equation: JaxprEqn, kernel: Var, part: Any, features: jax.Array) -> jax.Array:
    """Return one draw of a row's product with a kernel."""
    mean, log_scale, key = part
    variance = jnp.broadcast_to(jnp.exp(2 * log_scale), mean.shape)

    def product(x: jax.Array, w: jax.Array) -> jax.Array:
        operands = [w if var is kernel else x for var in equation.invars]
        return dot_general_p.bind(*operands, **equation.params)

    centre, spread = product(features, mean), jnp.sqrt(product(jnp.square(features), variance))
    return centre + spread * jax.random.normal(key, centre.shape, centre.dtype)
