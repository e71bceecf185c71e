r"""Low-rank adapters: clients train $BA$ beside a kernel $W$ that stays as it is.

A dense layer returns $xW + \frac{\alpha}{r} (xA)B$ with $A$ of r columns, drawn at random, and $B$
zero, so that training begins at the pretrained model. Adapters and head are the parameters of the
model that `lora` returns; all other weights are its `Model.frozen`.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685, section 4.1.
"""

import fnmatch
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pflalign_jax.models.base import Adapters, Model, check_sizes
from pflalign_jax.models.frozen import Frozen

ADAPTERS = "lora"
"""Where the adapters are in the parameters: ``{layer: {"a": [in, r], "b": [r, out]}}``.

An adapter may have ``"merged": [in, out]``, too, a sum of earlier products AB. Kernels of attention
are matrices here: of queries, keys and values ``[in, heads * D]``, of outputs ``[heads * D, out]``.
"""

_ATTENTION = ("query", "key", "value", "out")
"""Names of the layers in flax's ``nn.MultiHeadDotProductAttention``."""


def lora(
    model: Model,
    params: Mapping[str, Any],
    *,
    rank: int = 8,
    alpha: float = 16.0,
    targets: Sequence[str] = ("*",),
    dropout: float = 0.0,
    below: Any = None,
) -> Model:
    """Return a model whose parameters are low-rank adapters of dense layers, and the head.

    Works with every model of flax. Adapted are its ``nn.Dense`` layers, and queries, keys, values
    and outputs of its ``nn.MultiHeadDotProductAttention``; convolutions, embeddings, norms and
    recurrent layers with weights of their own (`lstm`) are not, they stay frozen.

    Args:
      model: that is adapted, with pretrained ``params``.
      params: its weights, as `Model.init` returns them. Layers of the head that are missing are
        initialised as the model does it.
      rank: r, of all adapters; 0: the head alone is trained.
      alpha: the adapters' products are scaled by ``alpha / rank``.
      targets: patterns like those of file names, for the paths of the dense layers to adapt, e.g.
        ``"layer_*/query"``. Layers of the head never are.
      dropout: share of an adapter's inputs that is set to 0 in a training step, drawn from the
        step's key. Losses of a method's own on features (FedRoD, FedPAC, ...) do without.
      below: further weights, that `Model.prepare` computes with, for `Frozen.digest`.

    Raises:
      ValueError: for a pattern that no dense layer fits, a rank below 0, a dropout outside [0, 1),
        or a model with nothing to train.
    """
    check_sizes("lora", least=0, rank=rank)
    if not 0 <= dropout < 1:
        raise ValueError(f"lora: dropout={dropout} is not allowed; it must be in [0, 1)")
    body = {name: layer for name, layer in params.items() if name not in model.head}
    layers = _matching(body, targets) if rank else {}
    if not layers and not model.head:
        raise ValueError("lora: rank=0 trains the head alone, and this model has none")
    frozen = Frozen(body, below)

    def init(key: jax.Array, x: jax.Array) -> dict[str, Any]:
        *keys, head_key = jax.random.split(key, len(layers) + 1)
        fresh = {} if all(name in params for name in model.head) else model.init(head_key, x)
        head = {name: params.get(name, fresh.get(name)) for name in model.head}
        adapters = {
            path: _new_adapter(layer_key, shape, rank)
            for layer_key, (path, shape) in zip(keys, layers.items(), strict=True)
        }
        return {**jax.tree.map(jnp.asarray, head), ADAPTERS: adapters}

    def call(
        function: Callable[..., jax.Array],
        params: Mapping[str, Any],
        *args: Any,
        dropped: Dropout | None = None,
        **options: int,
    ) -> jax.Array:
        import flax.linen as nn  # here, as models without flax do not pay for its start

        head = {name: params[name] for name in model.head}
        with nn.intercept_methods(_adding(params[ADAPTERS], alpha, dropped)):
            return function({**frozen.weights, **head}, *args, **options)

    def adapted(function: Callable[..., jax.Array] | None) -> Callable[..., jax.Array] | None:
        return None if function is None else functools.partial(call, function)

    def in_training(function: Callable[..., jax.Array] | None) -> Callable[..., jax.Array] | None:
        if function is None or not dropout:
            return adapted(function)

        def with_dropout(params: Any, *args: jax.Array) -> jax.Array:
            *others, key = args
            return call(function, params, *others, dropped=Dropout(dropout, key, tuple(layers)))

        return with_dropout

    train_apply = model.train_apply
    if train_apply is None and dropout:
        train_apply = lambda params, x, mask: model.apply(params, x)  # noqa: E731

    return model._replace(
        init=init,
        apply=functools.partial(call, model.apply),
        train_apply=in_training(train_apply),
        features=adapted(model.features),
        train_features=adapted(model.train_features),
        frozen=frozen,
        train_key=dropout > 0,
        label_losses=in_training(model.label_losses),
        generate=adapted(model.generate),
        adapters=Adapters(rank, alpha, dropout) if layers else None,
    )


class Dropout(NamedTuple):
    """Dropout of the inputs of adapters.

    Attributes:
      rate: share of them that is set to 0.
      key: of the step.
      layers: paths of all adapted layers; each has its own draws.
    """

    rate: float
    key: jax.Array
    layers: tuple[str, ...]

    def of(self, x: jax.Array, path: str) -> jax.Array:
        """Return the inputs of a layer's adapter in training."""
        key = jax.random.fold_in(self.key, self.layers.index(path))
        kept = jax.random.bernoulli(key, 1 - self.rate, x.shape)
        return jnp.where(kept, x / (1 - self.rate), 0)


def merge(model: Model, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the weights of the model that was adapted, with the adapters added to their kernels.

    Args:
      model: from `lora`.
      params: of one client.
    """
    assert model.frozen is not None and model.adapters is not None
    merged = jax.tree.map(jnp.asarray, dict(model.frozen.weights))
    for path, adapter in params[ADAPTERS].items():
        *parents, name = path.split("/")
        place = merged
        for parent in parents:
            place = place[parent]
        product = adapter["a"] @ adapter["b"] + adapter.get("merged", 0)
        kernel = place[name]["kernel"]
        change = _scale(adapter, model.adapters.alpha) * product.reshape(kernel.shape)
        place[name] = {**place[name], "kernel": kernel + change}
    return merged | {name: layer for name, layer in params.items() if name != ADAPTERS}


def adapter_mask(params: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Return a tree of bools like ``params``, True for a part of every adapter.

    Args:
      params: of a model with adapters.
      part: ``"a"``, ``"b"`` or ``"merged"``.
    """
    mask = jax.tree.map(lambda leaf: False, dict(params))
    mask[ADAPTERS] = {
        path: {name: name == part for name in adapter} for path, adapter in mask[ADAPTERS].items()
    }
    return mask


def with_merged(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters whose adapters have a place for earlier products, zero."""

    def one(adapter: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        shape = (adapter["a"].shape[0], adapter["b"].shape[1])
        return {**adapter, "merged": jnp.zeros(shape, adapter["a"].dtype)}

    return {**params, ADAPTERS: {path: one(a) for path, a in params[ADAPTERS].items()}}


def drawn_anew(key: jax.Array, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters with new adapters, A random and B zero; consumes ``key``."""
    adapters = params[ADAPTERS]
    keys = jax.random.split(key, len(adapters))
    fresh = {}
    for layer_key, (path, adapter) in zip(keys, sorted(adapters.items()), strict=True):
        inputs, rank = adapter["a"].shape
        shape = (inputs, adapter["b"].shape[1])
        fresh[path] = {**adapter, **_new_adapter(layer_key, shape, rank)}
    return {**params, ADAPTERS: fresh}


def _adding(
    adapters: Mapping[str, Any], alpha: float, dropped: Dropout | None
) -> Callable[..., Any]:
    """Return an interceptor of flax that adds an adapter to what its dense layer returns."""

    def add(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        outputs = call(*args, **kwargs)
        path = "/".join(context.module.path)
        adapter = adapters.get(path)
        if adapter is None or context.method_name != "__call__":
            return outputs
        matrices = {name: matrix.astype(outputs.dtype) for name, matrix in adapter.items()}
        x = _as_rows(context.module, args[0].astype(outputs.dtype))
        change = x @ matrices["merged"] if "merged" in matrices else 0
        x = x if dropped is None else dropped.of(x, path)
        change += (x @ matrices["a"]) @ matrices["b"]
        return outputs + _scale(adapter, alpha) * change.reshape(outputs.shape)

    return add


def _as_rows(layer: Any, x: jax.Array) -> jax.Array:
    """Return a layer's inputs ``[..., in]``, of a layer of attention ``[rows, in]``.

    Raises:
      ValueError: for a layer that multiplies its inputs in another way, or not at all.
    """
    import flax.linen as nn

    if isinstance(layer, nn.Dense):
        return x
    if isinstance(layer, nn.DenseGeneral) and not layer.batch_dims:
        axes = (layer.axis,) if isinstance(layer.axis, int) else tuple(layer.axis)
        first = x.ndim - len(axes)
        if [axis % x.ndim for axis in axes] == list(range(first, x.ndim)):
            return x.reshape(-1, math.prod(x.shape[first:]))
    raise ValueError(
        f"lora: layer {'/'.join(layer.path)!r} is a {type(layer).__name__}, which is no product of "
        "its inputs' last axes with a kernel; leave it out of targets"
    )


def _scale(adapter: Mapping[str, jax.Array], alpha: float) -> float:
    return alpha / adapter["a"].shape[1]


def _new_adapter(key: jax.Array, shape: tuple[int, int], rank: int) -> dict[str, jax.Array]:
    """Return A, uniform in ±1/sqrt(inputs) as in the authors' code, and B, zero."""
    inputs, outputs = shape
    bound = 1 / math.sqrt(inputs)
    return {
        "a": jax.random.uniform(key, (inputs, rank), minval=-bound, maxval=bound),
        "b": jnp.zeros((rank, outputs)),
    }


def _matching(params: Mapping[str, Any], targets: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return inputs and outputs, in numbers, of the layers that a pattern fits, by their paths."""
    layers = dict(_dense_layers(params))
    chosen: dict[str, tuple[int, int]] = {}
    for pattern in targets:
        found = {path: size for path, size in layers.items() if fnmatch.fnmatchcase(path, pattern)}
        if not found:
            known = f"the layers are {sorted(layers)}"
            if not layers:
                known = "the model has none besides its head, which rank=0 trains alone"
            raise ValueError(f"lora: no dense layer fits target {pattern!r}; {known}")
        chosen |= found
    return chosen


def _dense_layers(params: Mapping[str, Any], above: str = "") -> list[tuple[str, tuple[int, int]]]:
    """Return ``(path, (in, out))`` of every dense layer.

    Only a layer with a kernel and at most a bias is one: others use their kernel in a way of their
    own. One with three axes is dense as a part of attention; elsewhere it is a convolution's.
    """
    found = []
    in_attention = all(name in params for name in _ATTENTION)
    for name, value in params.items():
        if not isinstance(value, Mapping):
            continue
        path = f"{above}{name}"
        if value.keys() in ({"kernel"}, {"kernel", "bias"}):
            shape = getattr(value["kernel"], "shape", ())
            split = 2 if name == "out" and len(shape) == 3 else 1
            if len(shape) == 2 or (len(shape) == 3 and in_attention and name in _ATTENTION):
                found.append((path, (math.prod(shape[:split]), math.prod(shape[split:]))))
        found += _dense_layers(value, f"{path}/")
    return found
