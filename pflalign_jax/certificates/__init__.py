"""Certificates: upper bounds on the true loss of personal models that hold with a probability."""

from pflalign_jax.certificates.bound_training import (
    bound_training,
    bounded_cross_entropy,
    first_posterior,
    gaussian_prior,
    in_parameters,
)
from pflalign_jax.certificates.bounds import (
    binary_kl,
    chernoff_kl,
    clopper_pearson,
    kl_inverse,
    log_xi,
)
from pflalign_jax.certificates.certificate import (
    Certificate,
    best_of,
    holdout,
    pac_bayes,
    pooled_holdout,
    pooled_pac_bayes,
)
from pflalign_jax.certificates.certify import Certified, certify, zero_one_loss
from pflalign_jax.certificates.gaussians import Gaussian, gaussian_kl, laplace, leaf_scales
from pflalign_jax.certificates.validity import CertificateError

__all__ = [
    "Certificate",
    "CertificateError",
    "Certified",
    "Gaussian",
    "best_of",
    "binary_kl",
    "bound_training",
    "bounded_cross_entropy",
    "certify",
    "chernoff_kl",
    "clopper_pearson",
    "first_posterior",
    "gaussian_kl",
    "gaussian_prior",
    "holdout",
    "in_parameters",
    "kl_inverse",
    "laplace",
    "leaf_scales",
    "log_xi",
    "pac_bayes",
    "pooled_holdout",
    "pooled_pac_bayes",
    "zero_one_loss",
]
