"""Pretrained language models as models of clients: low-rank adapters, and a head for classes."""

import functools
import math
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pflalign_jax.models.base import Model, dense
from pflalign_jax.models.lora import lora
from pflalign_jax.models.pretrained import (
    DecoderConfig,
    DecoderParts,
    EncoderConfig,
    EncoderParts,
    PretrainedError,
    decoder_parts,
    encoder_parts,
    find_model,
    load,
    token_losses,
)
from pflalign_jax.models.pretrained.layout import dense_modules
from pflalign_jax.models.pretrained.loading import HUB, PACKAGED

LARGE = 2**30
"""Bytes of hidden states above which they are memory-mapped in a temporary file."""

AT_ONCE = 256
"""Texts whose hidden states are computed together."""


def pretrained_encoder(
    num_classes: int,
    path: str,
    rank: int = 8,
    alpha: float = 16.0,
    targets: tuple[str, ...] = ("layer_*/query", "layer_*/value"),
    adapt_layers: int | None = 2,
    dropout: float = 0.0,
    keep_hidden: bool = True,
    dtype: str = "float32",
    pad_token: str | None = None,
) -> Model:
    """Return a pretrained encoder with low-rank adapters in its top layers, and a linear head.

    Its features are the mean of the last hidden states over a text's tokens. Everything but
    adapters and head is `Model.frozen`.

    Args:
      num_classes: width of the head.
      path: of a model folder, the name of one that a package ships, ``"all-MiniLM-L6-v2"``, or
        ``"hub:owner/name"``; see `pflalign_jax.models.pretrained.find_model`.
      rank, alpha, targets, dropout: see `lora`.
      adapt_layers: how many layers, from the top, may have adapters; None: all.
      keep_hidden: whether the hidden states below those layers are computed once for every example
        and kept (`Model.prepare`), in memory or above 1 GiB in a temporary file, instead of in
        every step.
      dtype: that the pretrained layers compute in, ``"float32"`` or ``"bfloat16"``.
      pad_token: text of the token that fills up texts, which must be that of the data; None: the
        tokeniser's own.

    Raises:
      PretrainedError: for files that cannot be used, naming the file and what to do.
      ValueError: as `lora`.
    """
    parts, prepare = _encoder(path, adapt_layers, dtype, pad_token)
    width = parts.config.hidden

    def init(key: jax.Array, x: jax.Array) -> dict[str, Any]:
        # As PyTorch's linear layers.
        bound, shape = 1 / math.sqrt(width), (width, num_classes)
        kernel = jax.random.uniform(key, shape, minval=-bound, maxval=bound)
        return {"head": {"kernel": kernel, "bias": jnp.zeros(num_classes)}}

    def features(params: Any, x: jax.Array) -> jax.Array:
        top = {name: params[name] for name in parts.top_weights}
        if keep_hidden:
            return parts.top(top, x, _real(x))
        return parts.top(top, parts.lower(params["lower"], x), parts.mask(x))

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return dense(params["head"], features(params, x))

    check = functools.partial(_check_tokens, path, parts.config)
    model = Model(init, apply, head=("head",), features=features, prepare=check)
    weights, below = parts.top_weights, None
    if keep_hidden:
        model, below = model._replace(prepare=prepare), parts.lower_weights
    else:
        weights = {**weights, "lower": parts.lower_weights}
    adapted = lora(
        model, weights, rank=rank, alpha=alpha, targets=targets, dropout=dropout, below=below
    )
    return _named(adapted, path, parts.config, "FEATURE_EXTRACTION")


def pretrained_decoder(
    num_classes: int,
    path: str,
    rank: int = 8,
    alpha: float = 16.0,
    targets: tuple[str, ...] = ("layer_*/q_proj", "layer_*/v_proj"),
    adapt_layers: int | None = 2,
    dropout: float = 0.0,
    keep_hidden: bool = False,
    dtype: str = "float32",
    pad_token: str | None = None,
) -> Model:
    """Return a pretrained decoder with low-rank adapters in its top layers, for next tokens.

    Logits are of the whole vocabulary; adapters are all that clients train.

    Args:
      num_classes: the vocabulary of the data, at most that of the model.
      path: of a model folder or a GGUF file, the name of one that a package ships,
        ``"SmolLM2-135M-Instruct"``, or ``"hub:owner/name"``.
      rank, alpha, targets, adapt_layers, dropout, keep_hidden, dtype, pad_token: as in
        `pretrained_encoder`.

    Raises:
      PretrainedError: for files that cannot be used, or data of a larger vocabulary.
      ValueError: as `lora`.
    """
    parts, prepare = _decoder(path, adapt_layers, dtype, pad_token)
    if num_classes > parts.config.vocabulary:
        raise PretrainedError(
            f"{path} has a vocabulary of {parts.config.vocabulary} tokens, the data one of "
            f"{num_classes}; encode the data with the tokeniser of this model"
        )
    output = "embedding" if parts.config.tied else "output"

    def last_hidden(params: Any, x: jax.Array) -> jax.Array:
        top = {name: params[name] for name in parts.top_weights}
        if keep_hidden:
            return parts.top(top, x, _real(x))
        return parts.top(top, parts.lower(params["lower"], x), parts.mask(x))

    def vocabulary(params: Any) -> jax.Array:
        return params["lower"][output][:num_classes]

    def apply(params: Any, x: jax.Array) -> jax.Array:
        hidden, rows = last_hidden(params, x), vocabulary(params)
        return jnp.einsum("bld,vd->blv", hidden, rows, preferred_element_type=jnp.float32)

    def label_losses(params: Any, x: jax.Array, y: jax.Array, mask: jax.Array) -> jax.Array:
        return token_losses(last_hidden(params, x), vocabulary(params), y)

    def generate(
        params: Any, prompts: jax.Array, mask: jax.Array, new_tokens: int, end_id: int
    ) -> jax.Array:
        top = {name: params[name] for name in parts.top_weights}
        return parts.generate(params["lower"], top, prompts, new_tokens, end_id, mask)

    model = Model(lambda key, x: {}, apply, label_losses=label_losses, generate=generate)
    lower, below = parts.lower_weights, None
    if keep_hidden:
        # The layers below the adapters, which new tokens need, are not in memory then.
        model, below = model._replace(prepare=prepare, generate=None), lower
        lower = {output: lower[output]}
    weights = {**parts.top_weights, "lower": lower}
    adapted = lora(
        model, weights, rank=rank, alpha=alpha, targets=targets, dropout=dropout, below=below
    )
    return _named(adapted, path, parts.config, "CAUSAL_LM")


Prepare = Callable[[np.ndarray], np.ndarray]


# The last one only: runs of one comparison read the same files, and keep the same hidden states.
@functools.lru_cache(maxsize=1)
def _encoder(
    path: str, adapt_layers: int | None, dtype: str, pad_token: str | None
) -> tuple[EncoderParts, Prepare]:
    """Return an encoder in two parts, and what computes the states below the upper one."""
    loaded = load(find_model(path), pad_token)
    if not isinstance(loaded.config, EncoderConfig):
        raise PretrainedError(f"{path} is no encoder; use model pretrained_decoder")
    layers = loaded.config.layers if adapt_layers is None else adapt_layers
    parts = encoder_parts(loaded.config, loaded.weights, layers, dtype)
    return parts, _keeping(parts, path)


@functools.lru_cache(maxsize=1)
def _decoder(
    path: str, adapt_layers: int | None, dtype: str, pad_token: str | None
) -> tuple[DecoderParts, Prepare]:
    """Return a decoder likewise."""
    loaded = load(find_model(path), pad_token)
    if not isinstance(loaded.config, DecoderConfig):
        raise PretrainedError(f"{path} is no decoder; use model pretrained_encoder")
    layers = loaded.config.layers if adapt_layers is None else adapt_layers
    parts = decoder_parts(loaded.config, loaded.weights, layers, dtype)
    return parts, _keeping(parts, path)


def _named(model: Model, path: str, config: EncoderConfig | DecoderConfig, task: str) -> Model:
    """Return a model that knows what transformers and PEFT call it and its layers."""
    if model.adapters is None:
        return model
    base = PACKAGED[path].hub if path in PACKAGED else path
    if path.startswith(HUB):
        base, _, _ = path.removeprefix(HUB).partition("@")
    named = model.adapters._replace(base=base, task=task, modules=dense_modules(config))
    return model._replace(adapters=named)


def _real(hidden: jax.Array) -> jax.Array:
    """Return which positions of kept hidden states are real: padding has zeros."""
    return jnp.any(hidden != 0, axis=-1)


def _check_tokens(path: str, config: EncoderConfig | DecoderConfig, x: np.ndarray) -> np.ndarray:
    """Return tokens ``[N, L]``, or raise an error for one that the model does not have."""
    if x.max(initial=0) >= config.vocabulary:
        raise PretrainedError(
            f"texts have tokens up to {x.max()}, and {path} has embeddings of {config.vocabulary} "
            "tokens; encode the texts with the tokeniser of this model, e.g. "
            f"config.dataset.tokenizer={path}"
        )
    return x


def _keeping(parts: EncoderParts | DecoderParts, path: str) -> Prepare:
    """Return what computes the hidden states below the top layers, zeros where padding is.

    ``[N, L]`` tokens become ``[N, L, D]`` float32. What it made of the last tokens it was given is
    not computed again.
    """
    last: list[np.ndarray] = []

    @jax.jit
    def hidden_states(weights: Any, tokens: jax.Array) -> jax.Array:
        hidden = parts.lower(weights, tokens).astype(jnp.float32)
        return jnp.where(parts.mask(tokens)[:, :, None], hidden, 0)

    def prepare(x: np.ndarray) -> np.ndarray:
        if last and last[0] is x:
            return last[1]
        _check_tokens(path, parts.config, x)
        kept = _room((*x.shape, parts.config.hidden))
        weights = jax.tree.map(jnp.asarray, parts.lower_weights)
        # Batches are of one size, so that one program is compiled.
        size = min(AT_ONCE, len(x))
        for start in range(0, len(x), size):
            batch = x[start : start + size].astype(np.int32)
            padded = np.concatenate([batch, np.repeat(batch[:1], size - len(batch), axis=0)])
            found = np.asarray(hidden_states(weights, padded))
            kept[start : start + len(batch)] = found[: len(batch)]
        last[:] = [x, kept]
        return kept

    return prepare


def _room(shape: tuple[int, ...]) -> np.ndarray:
    """Return an array of float32 to be filled, in a temporary file where it is `LARGE`."""
    if 4 * math.prod(shape) <= LARGE:
        return np.empty(shape, np.float32)
    with tempfile.NamedTemporaryFile(prefix="hidden_states_") as file:
        # The file loses its name here and goes when the array does.
        return np.memmap(file, np.float32, "w+", shape=shape)
