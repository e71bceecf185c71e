"""Instructions and their completions by task; SmolLM2 with adapters in its top two layers.

make models, and --config.dataset.path=FILE.jsonl are required: a json object with instruction,
input, output and task in each line. A task is a client.

Personal models complete some test prompts after the last round: ROUGE-L and exact match. Some 400
examples of four tasks take about five minutes on two CPU cores.
"""

from ml_collections import ConfigDict

from pflalign_jax.runs import default_config

MODEL = "SmolLM2-135M-Instruct"


def get_config() -> ConfigDict:
    """Return the config."""
    config = default_config(model="pretrained_decoder")
    config.rounds = config.eval_every = config.generate_every = 3
    config.generate_clients = 4
    config.generate_examples = 4
    config.batch_size = 8
    config.dataset.name = "instructions"
    config.dataset.tokenizer = MODEL
    config.dataset.template = "chat"  # the model's own, with its system turn
    config.dataset.length = 128
    config.dataset.too_long = "cut"
    config.dataset.split_by = "random"  # lines of a file are in no order of time
    config.dataset.normalise = "fixed"
    config.model.path = MODEL
    config.compare.algorithms = ("local", "fedavg", "ditto", "fedsa_lora", "ffa_lora", "pflalign")
    config.compare.grid = (0.01, 0.03, 0.1)  # with 0.3 FedAvg diverges
    config.compare.grids.pflalign = (1.0, 3.0, 10.0)
    return config
