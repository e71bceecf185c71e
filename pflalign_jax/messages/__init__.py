"""What happens to clients' messages: compression, clipping, noise, robust means, attacks."""

from pflalign_jax.messages.attacks import (
    attack,
    corrupted_clients,
    label_flip,
    scaled_update,
    sign_flip,
)
from pflalign_jax.messages.clipping import clip, gaussian_noise
from pflalign_jax.messages.compress import int8, low_rank, top_k
from pflalign_jax.messages.privacy import central_epsilon, local_epsilon, private_mean
from pflalign_jax.messages.robust import (
    Rule,
    coordinate_median,
    norm_bound,
    robust,
    trimmed_mean,
)
from pflalign_jax.messages.transform import (
    MessageTransform,
    Sent,
    chain,
    stateless,
    transformed_bytes,
    with_error_feedback,
)
from pflalign_jax.messages.transform_messages import transform_messages

__all__ = [
    "MessageTransform",
    "Rule",
    "Sent",
    "attack",
    "central_epsilon",
    "chain",
    "clip",
    "coordinate_median",
    "corrupted_clients",
    "gaussian_noise",
    "int8",
    "label_flip",
    "local_epsilon",
    "low_rank",
    "norm_bound",
    "private_mean",
    "robust",
    "scaled_update",
    "sign_flip",
    "stateless",
    "top_k",
    "transform_messages",
    "transformed_bytes",
    "trimmed_mean",
    "with_error_feedback",
]
