"""Presidents' addresses, the next token by president; SmolLM2 with adapters in its top layers.

make models, and --config.dataset.path=DIRECTORY with the public speeches.jsonl, are required.

Twelve presidents of those with enough text, the later part of each one's addresses held out.
Of the text it is a twentieth: a run takes five and a half minutes on two CPU cores. Settings are
chosen by the loss per token: so few steps hardly change which token is the likeliest, which is all
that an accuracy sees.
"""

from ml_collections import ConfigDict

from experiments.intents import ABLATION
from pflalign_jax.runs import default_config

MODEL = "SmolLM2-135M-Instruct"


def get_config() -> ConfigDict:
    """Return the config."""
    config = default_config(model="pretrained_decoder")
    config.rounds = config.eval_every = 4
    config.headline = "nll"
    config.batch_size = 8
    config.dataset.name = "sotu_presidents"
    config.dataset.tokenizer = MODEL
    config.dataset.length = 64
    config.dataset.num_clients = 12
    config.dataset.fraction = 0.05
    config.dataset.min_examples = 25
    config.dataset.normalise = "fixed"
    config.model.path = MODEL
    config.model.adapt_layers = 4
    config.model.keep_hidden = True
    config.compare.algorithms = (
        *("pretrained", "local", "fedavg", "fedavgm", "ditto", "ffa_lora", "fedsa_lora"),
        *("pflalign", *ABLATION),
    )
    config.compare.grid = (0.1, 0.3, 1.0)
    config.compare.grids.pflalign = (1.0, 3.0, 10.0)
    with config.unlocked():
        config.compare.variants.update(ABLATION)
        # A decoder has no head: head_only leaves the model as it was pretrained.
        config.compare.variants.pretrained = {"name": "head_only", "head": ()}
        config.compare.grids.pretrained = (0.1,)
        config.compare.grids.no_realignment = config.compare.grids.pflalign
        config.compare.grids.no_preconditioner = config.compare.grid
    return config
