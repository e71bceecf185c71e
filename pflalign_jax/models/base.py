"""What the library needs of a model: two pure functions and a loss.

What only the algorithms of this package use (`single_head`, `labelled_features`, `dense`,
`mean_of_real`, ...) is imported from here and not exported by `pflalign_jax.models`.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pflalign_jax.models.frozen import Frozen

if TYPE_CHECKING:
    import flax.linen as nn

IGNORED = -1
"""The label of a position at which nothing is predicted: padding, or the prompt of an instruction.

Only sequences ``y [N, L]`` of the task next_token may have it; such positions count in no loss and
no metric.
"""


class Batch(NamedTuple):
    """Examples of one local step.

    Attributes:
      x: ``[B, ...]`` normalised features (float32), or tokens as stored.
      y: ``[B]`` int32 labels (``[B, L]`` for sequences, with `IGNORED` where none counts).
      mask: ``[B]`` float32, 1 for a real example, 0 for padding.
    """

    x: jax.Array
    y: jax.Array
    mask: jax.Array


class Adapters(NamedTuple):
    """What is known of a model's low-rank adapters besides their parameters.

    Attributes:
      rank: r, of all adapters.
      alpha: their products are scaled by ``alpha / rank``.
      dropout: share of an adapter's inputs that is set to 0 in a training step.
      base: name or path of the pretrained model; None: it is not one of transformers.
      task: what PEFT calls the model's use, ``"FEATURE_EXTRACTION"`` or ``"CAUSAL_LM"``.
      modules: names in transformers of the layers that can be adapted, by their paths here.
    """

    rank: int
    alpha: float
    dropout: float
    base: str | None = None
    task: str | None = None
    modules: Mapping[str, str] = MappingProxyType({})


class Model(NamedTuple):
    """A model as pure functions, whether written in flax, Haiku, Equinox or plain JAX.

    Attributes:
      init: ``(key, x) -> params`` for features ``x`` of shape ``[B, ...]``; consumes ``key``.
      apply: ``(params, x) -> logits``, ``[B, num_classes]`` (``[B, L, num_classes]``).
      train_apply: ``(params, x, mask) -> logits``, used by the training loss only; None: `apply`.
        For layers that behave differently in training, such as batch normalisation; ``mask`` is
        `Batch.mask`.
      head: names of the layers that map features to logits, at the top of the parameter tree;
        ``()`` if they are not known.
      features: ``(params, x) -> [B, F]`` (``[B, L, F]``), the input of the head, which is one dense
        layer; None if there is no such layer.
      train_features: ``(params, x, mask) -> features``, those of `train_apply`; None: `features`.
      frozen: weights that nobody trains, which the functions above read; None: there are none.
      prepare: features as stored to those that the functions above take, on the host, once for all
        examples: what nothing trains can be computed in advance. None: they are the same.
      train_key: whether ``train_apply`` and ``label_losses`` take a random key after ``mask``, as
        dropout needs it.
      label_losses: ``(params, x, y, mask) -> losses`` in the shape of ``y``, the cross-entropy of
        each label in nats in training, of models with so many classes that their logits should not
        all exist at once; None: it follows from ``train_apply``. Labels that are `IGNORED` may have
        any loss.
      generate: ``(params, prompts, mask, new_tokens, end_id) -> tokens``, answers ``[B,
        new_tokens]`` to prompts ``[B, P]`` that are real where ``mask`` is True, each up to its end
        token; the two numbers are static. None: the model writes no text.
      adapters: of low-rank adapters among the parameters; None: there are none.
    """

    init: Callable[[jax.Array, jax.Array], Any]
    apply: Callable[[Any, jax.Array], jax.Array]
    train_apply: Callable[..., jax.Array] | None = None
    head: tuple[str, ...] = ()
    features: Callable[[Any, jax.Array], jax.Array] | None = None
    train_features: Callable[..., jax.Array] | None = None
    frozen: Frozen | None = None
    prepare: Callable[[np.ndarray], np.ndarray] | None = None
    train_key: bool = False
    label_losses: Callable[..., jax.Array] | None = None
    generate: Callable[..., jax.Array] | None = None
    adapters: Adapters | None = None


def check_sizes(function: str, least: int = 1, **sizes: int | Sequence[int]) -> None:
    """Raise ValueError unless all sizes of a network, or all numbers in them, are >= ``least``.

    >>> check_sizes("mlp", hidden=(200, 0))
    Traceback (most recent call last):
    ValueError: mlp: hidden=(200, 0) is not allowed; every width must be >= 1
    """
    for name, size in sizes.items():
        widths, what = (size, "every width") if isinstance(size, Sequence) else ((size,), "it")
        if any(width < least for width in widths):
            raise ValueError(
                f"{function}: {name}={size!r} is not allowed; {what} must be >= {least}"
            )


def from_flax(module: "nn.Module", head: str | None = None) -> Model:
    """Return the `Model` of a flax linen module that has parameters only (no mutable state).

    Args:
      module: maps ``[B, ...]`` to logits.
      head: name of its last dense layer, for methods that share and keep parts of a model.

    >>> import flax.linen as nn
    >>> model = from_flax(nn.Dense(3))
    >>> params = model.init(jax.random.key(0), jnp.ones((1, 2)))
    >>> model.apply(params, jnp.ones((5, 2))).shape
    (5, 3)
    """

    def init(key: jax.Array, x: jax.Array) -> Any:
        variables = module.init(key, x)
        extra = sorted(set(variables) - {"params"})
        if extra:
            raise ValueError(
                f"{type(module).__name__} has variable collections {extra} besides 'params'; "
                "only parameters are supported; use normalisation without running statistics, or "
                "pflalign_jax.models.BatchNorm, which keeps them as parameters"
            )
        return variables["params"]

    def apply(params: Any, x: jax.Array, *mask: jax.Array) -> jax.Array:
        return cast(jax.Array, module.apply({"params": params}, x, *mask))

    def features(params: Any, x: jax.Array, *mask: jax.Array) -> jax.Array:
        import flax.linen as nn  # here, as models without flax do not pay for its start

        # The head's input is caught where the module calls it, so that any module has features
        # and need not be written in two parts. XLA drops the head's own product, which is unused.
        inputs: list[jax.Array] = []

        def catch_input(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if context.module.path == (head,) and context.method_name == "__call__":
                inputs.append(args[0])
            return call(*args, **kwargs)

        with nn.intercept_methods(catch_input):
            apply(params, x, *mask)
        if not inputs:
            raise ValueError(f"{type(module).__name__} calls no layer named {head!r}")
        return inputs[0]

    if head is None:
        return Model(init, apply)
    return Model(init, apply, head=(head,), features=features)


def dense(layer: Mapping[str, jax.Array], z: jax.Array) -> jax.Array:
    """Return ``z @ kernel + bias``, ``[..., C]`` of ``[..., F]`` features."""
    bias = layer["bias"]
    # Reshaped, because the tests forbid broadcasting between arrays of different rank.
    return z @ layer["kernel"] + bias.reshape((1,) * (z.ndim - 1) + bias.shape)


def with_compute_dtype(model: Model, dtype: str) -> Model:
    """Return a model that computes in ``dtype``, e.g. ``"bfloat16"``.

    Parameters, their gradients and the logits stay in float32: only a copy of the parameters and
    the features is cast, as is usual in mixed precision. Tokens are not cast.
    """
    if model.frozen is not None:
        raise ValueError(
            f"compute_dtype={dtype!r} does not reach frozen weights; give the model its dtype "
            "where it is made, e.g. --config.model.dtype=bfloat16"
        )

    def lowered(a: jax.Array) -> jax.Array:
        return a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a

    def in_dtype(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        def compute(params: Any, x: jax.Array, *mask: jax.Array) -> jax.Array:
            # The cast is inside what is differentiated, so that gradients come back in float32.
            out = function(jax.tree.map(lowered, params), lowered(x), *mask)
            return out.astype(jnp.float32)

        return compute

    def optional(function: Callable[..., jax.Array] | None) -> Callable[..., jax.Array] | None:
        return None if function is None else in_dtype(function)

    return model._replace(
        apply=in_dtype(model.apply),
        train_apply=optional(model.train_apply),
        features=optional(model.features),
        train_features=optional(model.train_features),
        label_losses=optional(model.label_losses),
    )


def single_head(method: str, model: Model) -> str:
    """Return the name of a model's only head layer, which is dense.

    Raises:
      ValueError: if the model has no head or several, or no ``features``; it names ``method``.
    """
    if len(model.head) != 1 or model.features is None:
        raise ValueError(
            f"{method} needs a model with one dense head and its features; this one has "
            f"head={model.head!r}. For a flax module use models.from_flax(module, head=NAME)"
        )
    return model.head[0]


def batch_features(model: Model, params: Any, batch: Batch) -> jax.Array:
    """Return the features of a training batch, ``[B, F]`` (``[B, L, F]``).

    It uses ``model.train_features`` if the model has it, as `cross_entropy` uses ``train_apply``.
    """
    assert model.features is not None
    if model.train_features is None:
        return model.features(params, batch.x)
    return model.train_features(params, batch.x, batch.mask)


def labelled_features(
    model: Model, params: Any, batch: Batch
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return `batch_features`, labels and mask with a row per label: ``[N, F]``, ``[N]``, ``[N]``.

    N is B, or B L for sequences. Positions that are `IGNORED` have mask 0 and any label.
    """
    return _row_per_label(batch_features(model, params, batch), batch)


def labelled_logits(
    model: Model, params: Any, batch: Batch, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return `training_outputs`, labels and mask likewise: ``[N, C]``, ``[N]``, ``[N]``."""
    return _row_per_label(training_outputs(model, params, batch, key), batch)


def _row_per_label(values: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
    num_labels = batch.y.size
    y, mask = batch.y.reshape(num_labels), jnp.repeat(batch.mask, num_labels // batch.mask.size)
    if batch.y.ndim > 1:
        y, mask = jnp.maximum(y, 0), jnp.where(y == IGNORED, 0, mask)
    return values.reshape(num_labels, -1), y, mask


def mean_of_real(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the mean of ``[B]`` values over real examples, those with mask 1; 0 without any."""
    # At least 1, because a batch of padding alone would give 0 / 0 and spoil the round's mean.
    return jnp.sum(values * mask) / jnp.maximum(jnp.sum(mask), 1)


def mean_of_counted(values: jax.Array, y: jax.Array) -> jax.Array:
    """Return the mean of each example's values over its positions that count, ``[B]``; 0 without.

    Args:
      values: ``[B]`` or ``[B, L]``, as ``y``.
      y: labels; positions that are `IGNORED` do not count.
    """
    if y.ndim == 1:
        return values.reshape(len(y), -1).mean(axis=1)
    counts = (y != IGNORED).reshape(len(y), -1)
    values = jnp.where(counts, values.reshape(counts.shape), 0)
    # The mean over all L, times L / counted: exactly 1 where every position counts, so that such
    # data give the same bits as a plain mean.
    return values.mean(axis=1) * (counts.shape[1] / jnp.maximum(counts.sum(axis=1), 1))


def example_losses(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Return the cross-entropy of each example in nats, ``[B]``.

    Of sequences it is the mean over positions that count; an example without any has a loss of 0
    and no gradient.

    Raises:
      ValueError: for what is not logits ``[B, C]`` of at least two classes and integers ``[B]``
        (``[B, L, C]`` and ``[B, L]``), which would train on nonsense.
    """
    fits = logits.shape[:-1] == y.shape and logits.shape[-1] > 1
    if not fits or not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(
            f"cross-entropy needs two or more logits and an integer label of each example; outputs "
            f"are {list(logits.shape)} and y is {y.dtype} {list(y.shape)}. For another task pass "
            "loss=task.loss(model) to the algorithm, with a task of pflalign_jax.tasks"
        )
    return mean_of_counted(optax.softmax_cross_entropy_with_integer_labels(logits, y), y)


def example_hits(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Return the share of right predictions of each example, ``[B]`` float32 in [0, 1].

    Of sequences it is the share of positions that count.
    """
    return mean_of_counted((jnp.argmax(logits, axis=-1) == y).astype(jnp.float32), y)


def training_outputs(model: Model, params: Any, batch: Batch, key: jax.Array) -> jax.Array:
    """Return what a model gives for a training batch: by ``train_apply`` if it has that.

    Args:
      model, params: of one client.
      batch: of examples.
      key: of the step; used by models with ``train_key`` alone.
    """
    if model.train_apply is None:
        return model.apply(params, batch.x)
    keys = (key,) if model.train_key else ()
    return model.train_apply(params, batch.x, batch.mask, *keys)


def cross_entropy(model: Model) -> Callable[[Any, Batch, jax.Array], jax.Array]:
    """Return ``loss(params, batch, key)``, the mean cross-entropy of the batch's real examples.

    See `training_outputs`; a model with ``label_losses`` gives its losses without logits. A mask of
    zeros gives a loss of 0.
    """

    def loss(params: Any, batch: Batch, key: jax.Array) -> jax.Array:
        if model.label_losses is None:
            losses = example_losses(training_outputs(model, params, batch, key), batch.y)
        else:
            keys = (key,) if model.train_key else ()
            of_labels = model.label_losses(params, batch.x, batch.y, batch.mask, *keys)
            losses = mean_of_counted(of_labels, batch.y)
        return mean_of_real(losses, batch.mask)

    return loss
