"""What `pflalign_jax.align` refuses: trees that do not match, values out of range, wrong dtypes."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

CORRECTIONS = ("probability", "sign", "none")


def check_same_structure(
    tree: Any, reference: Any, name: str, reference_name: str, *, stacked: bool = False
) -> None:
    """Raise an error if two trees differ in their leaves or in the shapes of these.

    Args:
      tree, reference: trees of arrays.
      name, reference_name: their names in the message.
      stacked: allow ``tree`` to be stacked over clients: one more leading axis ``K``, the same
        in all leaves.

    Raises:
      ValueError: with the path of the first leaf that differs and both shapes.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    reference_leaves = jax.tree_util.tree_leaves_with_path(reference)
    keystr = jax.tree_util.keystr
    # The axes in front of the reference's: () or (K,). The first leaf decides it for all others,
    # so that leaves of different K, or stacked and unstacked ones, do not pass together.
    lead: tuple[int, ...] | None = None
    # Not strict: a leaf that differs is named before a different number of leaves is.
    for (path, leaf), (expected_path, expected) in zip(leaves, reference_leaves, strict=False):
        if path != expected_path:
            raise ValueError(
                f"{name} does not match {reference_name}: the first leaf that differs is "
                f"{keystr(path)} in {name}, {keystr(expected_path)} in {reference_name}"
            )
        shape, expected_shape = jnp.shape(leaf), jnp.shape(expected)
        if lead is None:
            lead = shape[:1] if stacked and len(shape) == len(expected_shape) + 1 else ()
        if shape != lead + expected_shape:
            among = f" stacked over {lead[0]} clients" if lead else ""
            raise ValueError(
                f"{name}{among} does not match {reference_name}: leaf {keystr(path)} has shape "
                f"{shape} in {name}, {expected_shape} in {reference_name}"
            )
    common = min(len(leaves), len(reference_leaves))
    for longer, owner in ((leaves, name), (reference_leaves, reference_name)):
        if len(longer) > common:
            raise ValueError(
                f"{name} does not match {reference_name}: leaf {keystr(longer[common][0])} exists "
                f"only in {owner}"
            )


def check_real(tree: Any, name: str) -> None:
    """Raise an error for the first leaf that is not real floating point."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"align_transform: {name}{jax.tree_util.keystr(path)} has dtype {dtype}, and P "
                "and γ are defined for real numbers; keep a complex parameter as two leaves, its "
                "real and imaginary part, and leave out integers with optax.masked"
            )


def check_num_steps(num_steps: Any) -> None:
    """Raise an error for a number of local steps T that is none; a traced one has a shape only."""
    if num_steps is None:
        raise ValueError(
            "align_transform: direction was given without num_steps; pass the number of "
            "local steps of this round, update(..., direction=delta, num_steps=T)"
        )
    check_one_number("num_steps", num_steps)
    if not isinstance(num_steps, jax.core.Tracer) and not (num_steps >= 1 and num_steps % 1 == 0):
        raise ValueError(f"align_transform: num_steps={num_steps!r} must be a whole number >= 1")


def check_one_number(name: str, value: Any) -> None:
    """Raise an error for one value per client without `jax.vmap`: it would act on the last axis."""
    if np.ndim(value) != 0:
        raise ValueError(
            f"align_transform: {name} has shape {np.shape(value)} and must be one number; for "
            "clients that are stacked along a first axis, use jax.vmap over them"
        )


def nonzero_eps(eps: Any) -> Any:
    """Return eps, or float32's least normal number if `optax.inject_hyperparams` rounded it to 0.

    It casts hyperparameters to the dtype of the parameters, and 1e-12 is 0 in float16. The step
    would divide 0 by 0 where the gradient has always been 0.
    """
    if getattr(eps, "dtype", None) != jnp.float16:
        return eps
    return jnp.where(eps == 0, jnp.finfo(jnp.float32).tiny, jnp.asarray(eps, jnp.float32))


def check_hyperparameters(
    learning_rate: Any, beta: Any, eps: Any, correction: Any, memory_dtype: Any
) -> None:
    """Raise an error for bad values; traced ones (`optax.inject_hyperparams`) are not checked."""

    def refuse(name: str, value: Any, allowed: str) -> None:
        raise ValueError(f"align_transform: {name}={value!r} is not allowed; {allowed}")

    def is_concrete(value: Any) -> bool:
        return not isinstance(value, jax.core.Tracer)

    given = {"learning_rate": learning_rate, "beta": beta, "eps": eps, "correction": correction}
    for name, value in given.items():
        check_one_number(name, value)
    if not callable(learning_rate) and is_concrete(learning_rate):
        if not (float(learning_rate) >= 0 and math.isfinite(learning_rate)):
            refuse("learning_rate", learning_rate, "it must be finite and >= 0, or a schedule")
    if is_concrete(beta) and not 0 <= float(beta) < 1:
        refuse("beta", beta, "it must be in [0, 1)")
    # An eps that underflows to 0 would divide 0 by 0 where the gradient has always been 0.
    if is_concrete(eps) and not jnp.finfo(jnp.float32).tiny <= float(eps) < math.inf:
        refuse("eps", eps, "it must be > 0, finite, and not vanish in float32")
    if isinstance(correction, str):
        if correction not in CORRECTIONS:
            refuse("correction", correction, f"use one of {CORRECTIONS} or a constant in [0, 1]")
    elif isinstance(correction, bool):  # True is 1 to Python, but nobody means γ = 1 by it
        refuse("correction", correction, f"use one of {CORRECTIONS} or a constant in [0, 1]")
    elif is_concrete(correction) and not 0 <= float(correction) <= 1:
        refuse("correction", correction, "a constant must be in [0, 1]")
    if memory_dtype == "float16":
        refuse(
            "memory_dtype",
            memory_dtype,
            "squares of gradients leave its range (6e-8 to 65504), so P would be wrong: use "
            "'bfloat16', of the same size and the range of float32",
        )
    if memory_dtype not in (None, "float32", "bfloat16"):
        refuse("memory_dtype", memory_dtype, "use 'bfloat16', 'float32' or None")
