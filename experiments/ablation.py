"""pFLAlign's variants over β, on Fashion-MNIST in PFLlib's setting, a quarter of it.

python -m experiments.compare --config=experiments/ablation.py

"""

from typing import Any

from ml_collections import ConfigDict

from experiments import fashion_mnist

VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "no_preconditioner": {"precondition": False},
    "no_correction": {"correction": "none"},
    "half": {"correction": 0.5},
    "one": {"correction": 1.0},
    "sign": {"correction": "sign"},
    "no_realignment": {"realignment": False},
}
BETAS = (0.9, 0.5, 0.99)
"""The names of variants end in β, in percent."""


def get_config() -> ConfigDict:
    """Return the config."""
    config = fashion_mnist.get_config()
    config.dataset.fraction = 0.25
    config.eval_every = config.compare.search_rounds = 10
    config.diagnostics = True
    variants: dict[str, dict[str, Any]] = {
        f"{name}-{100 * beta:.0f}": {"name": "pflalign", "beta": beta, **fields}
        for beta in BETAS
        for name, fields in VARIANTS.items()
    }
    variants["sgd"] = {"name": "pflalign", "precondition": False, "realignment": False}
    config.compare.algorithms = (*variants, "local", "fedavg")
    grids = config.compare.grids
    with config.unlocked():
        config.compare.variants.update(variants)
        for name, fields in variants.items():
            aligned = fields.get("precondition", True)
            grids[name] = grids.pflalign if aligned else config.compare.grid
    return config
