"""The same FedAvg round in other libraries, for `experiments.benchmark --against`.

Needs the extra ``bench``. The peers get what suits them: ordinary convolutions, all cores, data
in memory as float32, no progress bars, no scores.
"""

import copy
import functools
import importlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.benchmark.random_weights import CONFIGS
from experiments.benchmark.workloads import BATCH, DECODER, ENCODER, WORKLOADS
from pflalign_jax import models
from pflalign_jax.datasets import FederatedDataset
from pflalign_jax.errors import UserError


class PeerError(UserError):
    """A comparison that cannot be made; the message says why and what to do."""


def fedjax_round(name: str, dataset: FederatedDataset) -> Callable[[], None]:
    """Return one round of FedJAX's ``federated_averaging``: a jitted step per batch.

    The gradient is of our model's flax version with `lax.conv`.
    """
    if not hasattr(jax, "tree_map"):  # FedJAX 0.0.17 was written for JAX before 0.6
        setattr(jax, "tree_map", jax.tree.map)  # noqa: B010
    fedjax = _imported("fedjax")
    model = models.cnn(10, conv="lax") if name == "cnn" else _plain(name)
    loss = models.cross_entropy(model)
    x, y = _examples(dataset)

    def gradient(params: Any, batch: Any, key: jax.Array) -> Any:
        examples = models.Batch(batch["x"], batch["y"], jax.numpy.ones(len(batch["y"])))
        return jax.grad(loss)(params, examples, key)

    algorithm = fedjax.algorithms.fed_avg.federated_averaging(
        gradient,
        fedjax.optimizers.sgd(0.01),
        fedjax.optimizers.sgd(1.0),
        fedjax.ShuffleRepeatBatchHParams(batch_size=BATCH, seed=0),
    )
    clients = [
        (str(k), fedjax.ClientDataset({"x": x[own], "y": y[own]}), jax.random.PRNGKey(k))
        for k, own in enumerate(_owned(dataset))
    ]
    state = algorithm.init(model.init(jax.random.key(0), jax.numpy.asarray(x[:1])))

    def one_round() -> None:
        nonlocal state
        state, _ = algorithm.apply(state, clients)
        jax.block_until_ready(state.params)

    return one_round


def torch_round(
    name: str, dataset: FederatedDataset, compiled: bool = False, accelerated: bool = False
) -> Callable[[], None]:
    """Return one FedAvg round as a PyTorch loop over clients and batches.

    Args:
      name: of the workload.
      dataset: all of it.
      compiled: whether `torch.compile` compiles the model; else it runs eagerly.
      accelerated: whether it runs on PyTorch's accelerator, if it finds one.
    """
    torch = _imported("torch")
    torch.manual_seed(0)
    device = "cuda" if accelerated and torch.cuda.is_available() else "cpu"
    server = _torch_model(torch, name).to(device)
    model = copy.deepcopy(server)  # of one client after the other
    call = torch.compile(model) if compiled else model
    x, y = _examples(dataset)
    x = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).to(device)
    y = torch.from_numpy(y.astype(np.int64)).to(device)
    clients = [(x[own], y[own]) for own in _owned(dataset)]
    criterion = torch.nn.CrossEntropyLoss()

    def one_round() -> None:
        total = [torch.zeros_like(p) for p in server.parameters()]
        for features, labels in clients:
            model.load_state_dict(server.state_dict())
            optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
            # An epoch over shuffled batches, as every contender takes it.
            for chosen in torch.randperm(len(labels), device=device).split(BATCH):
                optimiser.zero_grad()
                criterion(call(features[chosen]), labels[chosen]).backward()
                optimiser.step()
            with torch.no_grad():
                for t, p in zip(total, model.parameters(), strict=True):
                    t += p * (len(labels) / len(y))
        with torch.no_grad():
            for p, t in zip(server.parameters(), total, strict=True):
                p.copy_(t)
        if device == "cuda":
            torch.cuda.synchronize()

    return one_round


def _torch_model(torch: Any, name: str) -> Any:
    """Return PyTorch's network of a workload."""
    nn = torch.nn
    layers = {
        "cnn": lambda: nn.Sequential(
            *(nn.Conv2d(1, 32, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 10)),
        ),
        "logistic": lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)),
        "mlp": lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10)
        ),
        "mlp2": lambda: nn.Sequential(
            *(nn.Flatten(), nn.Linear(784, 100), nn.ReLU()),
            *(nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)),
        ),
    }
    if name not in layers:
        raise PeerError(f"--against=torch has no {name!r} workload, only {sorted(layers)}")
    return layers[name]()


def peft_round(name: str, dataset: FederatedDataset) -> Callable[[], None]:
    """Return FedAvg's local steps with adapters of PEFT on a model of transformers, in PyTorch.

    Weights are random, of the sizes of ours. Layers below the adapters are run in every step, as
    PyTorch keeps no hidden states between them; they get no gradients.
    """
    adapted = {
        "lora-encoder": range(6),
        "lora-encoder-top": range(4, 6),
        "lora-decoder": range(26, 30),
    }
    if name not in adapted:
        raise PeerError(f"--against=peft has no {name!r} workload, only {sorted(adapted)}")
    torch, transformers, peft = map(_imported, ("torch", "transformers", "peft"))
    torch.manual_seed(0)
    encoder, workload = "encoder" in name, WORKLOADS[name]
    values = CONFIGS[ENCODER if encoder else DECODER]
    sizes = {key: value for key, value in values.items() if key != "model_type"}
    if encoder:  # ours has none
        sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    body = (
        transformers.BertModel(transformers.BertConfig(**sizes), add_pooling_layer=False)
        if encoder
        else transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    )
    settings = peft.LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=["query", "value"] if encoder else ["q_proj", "v_proj"],
        layers_to_transform=list(adapted[name]),
    )
    model = peft.get_peft_model(body, settings)
    trained = [p for p in model.parameters() if p.requires_grad]
    head = torch.nn.Linear(values["hidden_size"], workload.classes) if encoder else None
    optimiser = torch.optim.SGD([*trained, *(head.parameters() if head else ())], lr=0.01)
    x = torch.from_numpy(dataset.x.astype(np.int64))
    y = torch.from_numpy(dataset.y.astype(np.int64))
    clients = [torch.from_numpy(own) for own in _owned(dataset)]
    criterion = torch.nn.CrossEntropyLoss()

    def logits(tokens: Any) -> Any:
        if head is None:
            return model(input_ids=tokens, use_cache=False).logits.flatten(0, 1)
        return head(model(input_ids=tokens).last_hidden_state.mean(1))

    def one_round() -> None:
        for own in clients:
            for chosen in own[torch.randperm(len(own))].split(workload.batch):
                optimiser.zero_grad()
                criterion(logits(x[chosen]), y[chosen].flatten()).backward()
                optimiser.step()

    return one_round


PEERS = {"fedjax": fedjax_round, "torch": torch_round, "peft": peft_round}


def _plain(name: str) -> models.Model:
    """Return our model of a workload that FedJAX can train as it is."""
    plain = {
        "logistic": functools.partial(models.logistic, 10),
        "mlp": functools.partial(models.mlp, 10, (200,)),
        "mlp2": functools.partial(models.mlp, 10, (100, 100)),
    }
    if name not in plain:
        raise PeerError(f"--against=fedjax has no {name!r} workload, only {['cnn', *plain]}")
    return plain[name]()


def _imported(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise PeerError(
            f"--against={package} needs the package {package!r} ({error}); "
            "pip install 'pflalign-jax[bench]'"
        ) from error


def _examples(dataset: FederatedDataset) -> tuple[np.ndarray, np.ndarray]:
    """Return normalised features as float32, and labels."""
    return (dataset.x.astype(np.float32) - dataset.mean) / dataset.std, dataset.y


def _owned(dataset: FederatedDataset) -> list[np.ndarray]:
    """Return the training examples of each client."""
    train = dataset.splits["train"]
    return [train.of_client(k) for k in range(dataset.num_clients)]
