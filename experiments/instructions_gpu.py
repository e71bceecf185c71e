"""instructions.py with the settings of a public reimplementation of pFLAlign, for a GPU.

--config.model.path=FOLDER --config.dataset.tokenizer=FOLDER of a Llama model as transformers saves
it, and --config.dataset.path=FILE.jsonl with four tasks are required.

github.com/kdwaha/Flex: adapters of rank 8 (alpha 16, dropout 0.05) of queries, keys, values and
outputs of all layers, five local epochs of AdamW with step size 2e-4. Run here with a small random
model only: it wants a GPU. The step sizes to compare are AdamW's usual ones, not searched here.
"""

from ml_collections import ConfigDict

from experiments import instructions


def get_config() -> ConfigDict:
    """Return the config."""
    config = instructions.get_config()
    config.rounds, config.local_epochs = 10, 5
    config.eval_every = config.generate_every = 5
    config.dataset.template = "alpaca"
    config.dataset.length = 512
    config.dataset.num_clients = 4
    config.local_optimizer = "adamw"
    config.algorithm.learning_rate = 2e-4
    config.compare.grid = (0.0003, 0.001, 0.003)
    config.compare.grids.pflalign = (0.001, 0.003, 0.01)  # P <= 1 makes its steps shorter
    config.model.rank, config.model.alpha, config.model.dropout = 8, 16.0, 0.05
    config.model.targets = tuple(f"layer_*/{name}_proj" for name in "qkvo")
    config.model.adapt_layers = None  # all
    config.model.dtype = "bfloat16"
    return config
