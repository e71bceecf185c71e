"""pFLAlign's two mechanisms in other methods, on digits.

python -m experiments.compare --config=experiments/mechanisms_in_baselines.py
"""

from typing import Any

from ml_collections import ConfigDict

from experiments import digits

VARIANTS: dict[str, dict[str, Any]] = {
    "aligned_ditto": {"name": "ditto", "personal_tx": 3.0},
    "aligned_fedrep": {"name": "fedrep", "body_tx": 3.0},
    "realigned_fedprox": {"name": "pflalign", "precondition": False, "before": 0.01},
    "realigned": {"name": "pflalign", "precondition": False},
}
"""Local alignment in Ditto and in FedRep; realignment of FedProx, and of FedAvg."""


def get_config() -> ConfigDict:
    """Return the config."""
    config = digits.get_config()
    config.compare.algorithms = (*VARIANTS, "ditto", "fedrep", "fedprox", "fedavg", "local")
    with config.unlocked():
        config.compare.variants.update(VARIANTS)
        tuned = config.compare.tuned
        tuned.aligned_ditto = ("personal_tx", (1.0, 3.0, 10.0, 30.0))
        tuned.aligned_fedrep = ("body_tx", (1.0, 3.0, 10.0, 30.0))
        tuned.realigned_fedprox = ("before", tuned.fedprox[1])
        for name in ("realigned", "realigned_fedprox"):
            config.compare.grids[name] = config.compare.grid
    return config
