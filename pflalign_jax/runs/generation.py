"""Texts that personal models write during a run, and how near they come to their references."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from pflalign_jax.datasets import FederatedDataset
from pflalign_jax.datasets.loaders.tokens import Tokeniser, read_tokeniser
from pflalign_jax.federated import Federation, FederationState
from pflalign_jax.models.base import IGNORED
from pflalign_jax.runs.config_checks import ConfigError
from pflalign_jax.tasks import Task
from pflalign_jax.tasks.text_metrics import exact_match, rouge_l

SPLIT = "test"
"""The split whose prompts are completed."""


GENERATED = (
    f"exact_match/{SPLIT}/personal/generated/mean",
    f"rouge_l/{SPLIT}/personal/generated/mean",
    "generated/clients",
    "generated/examples",
)
"""Names in ``metrics.jsonl``, see `Generation.scores`."""


class Prompts(NamedTuple):
    """E test examples of one client.

    Attributes:
      tokens: ``[E, P]`` int32, prompts, filled up on the right.
      mask: ``[E, P]``, which tokens belong to a prompt.
      references: their completions, as texts; fewer than E where a client has fewer examples.
    """

    tokens: np.ndarray
    mask: np.ndarray
    references: tuple[str, ...]


class Generation(NamedTuple):
    """What some clients' models are asked to complete.

    Attributes:
      prompts: position of a client to its prompts.
      new_tokens: the most that an answer has: as the longest reference with its end token.
      end_id: the token that ends an answer.
      tokeniser: makes texts of tokens.
    """

    prompts: Mapping[int, Prompts]
    new_tokens: int
    end_id: int
    tokeniser: Tokeniser

    def scores(self, federation: Federation, state: FederationState) -> dict[str, float]:
        """Return what the models that clients start a round with generate, greedily, is worth.

        Means over clients of their means over examples, exact match and ROUGE-L in [0, 1], and how
        many clients and examples these are.
        """
        of_clients = [
            self._scores_of(federation, state, k, prompts) for k, prompts in self.prompts.items()
        ]
        exact, rouge = np.mean(of_clients, axis=0)
        examples = sum(len(prompts.references) for prompts in self.prompts.values())
        values = (float(exact), float(rouge), len(self.prompts), examples)
        return dict(zip(GENERATED, values, strict=True))

    def _scores_of(
        self, federation: Federation, state: FederationState, k: int, prompts: Prompts
    ) -> tuple[float, float]:
        tokens = federation.generate(
            state, k, prompts.tokens, prompts.mask, self.new_tokens, self.end_id
        )
        texts = _texts(self.tokeniser, tokens[: len(prompts.references)], self.end_id)
        pairs = list(zip(texts, prompts.references, strict=True))
        return (
            float(np.mean([exact_match(*pair) for pair in pairs])),
            float(np.mean([rouge_l(*pair) for pair in pairs])),
        )


def generation_of(
    config: ConfigDict, dataset: FederatedDataset, federation: Federation
) -> Generation | None:
    """Return what a run generates by its config; None: nothing.

    Args:
      config: resolved.
      dataset: as its owners have it, in tokens.
      federation: of the run.

    Raises:
      ConfigError: naming what generation needs and the run does not have.
      DatasetError: if the tokeniser cannot be read, or its end token is not known.
      PretrainedError: if prompts and answers are longer than the model's context.
    """
    if config.generate_every is None:
        return None
    _refuse_without_text(config, dataset, federation)
    fields = config.dataset
    tokeniser = read_tokeniser(fields.tokenizer)
    end_id = tokeniser.end_token(fields.get("end_token"))
    owned = dataset.splits[SPLIT]
    clients = np.flatnonzero(owned.sizes)[: config.generate_clients]
    rows = {int(k): owned.of_client(k)[: config.generate_examples] for k in clients}
    chosen = np.concatenate(list(rows.values()))
    counts = dataset.y[chosen] != IGNORED
    first = counts.argmax(axis=1)
    size, longest = int(first.max()) + 1, int(counts.sum(axis=1).max())
    prompts = {
        k: _prompts(dataset, tokeniser, of_client, config.generate_examples, size, end_id)
        for k, of_client in rows.items()
    }
    generation = Generation(prompts, longest, end_id, tokeniser)
    _check_context(federation, generation)
    return generation


def _prompts(
    dataset: FederatedDataset,
    tokeniser: Tokeniser,
    rows: np.ndarray,
    count: int,
    size: int,
    end_id: int,
) -> Prompts:
    """Return the prompts of one client, ``count`` rows of ``size`` tokens; the last ones repeat."""
    repeated = np.resize(rows, count)
    first = (dataset.y[repeated] != IGNORED).argmax(axis=1)
    # At the last token of a prompt the completion's first one is to be predicted.
    mask = np.arange(size)[None] <= first[:, None]
    labels = [dataset.y[row][dataset.y[row] != IGNORED] for row in rows]
    return Prompts(
        dataset.x[repeated, :size].astype(np.int32),
        mask,
        tuple(_texts(tokeniser, labels, end_id)),
    )


def _texts(tokeniser: Tokeniser, tokens: Any, end_id: int) -> list[str]:
    """Return the texts of rows of tokens, each up to its end token."""
    ended = [row[: np.argmax(row == end_id)] if (row == end_id).any() else row for row in tokens]
    return list(tokeniser.tokenizer.decode_batch([row.tolist() for row in ended]))


def _refuse_without_text(
    config: ConfigDict, dataset: FederatedDataset, federation: Federation
) -> None:
    """Raise an error for a run that cannot generate, or has nothing to complete."""
    every = f"config.generate_every={config.generate_every}"
    task: Task = federation.task
    if config.generate_every % config.eval_every:
        raise ConfigError(
            f"{every} is not a multiple of config.eval_every={config.eval_every}; texts are "
            "generated at an evaluation"
        )
    if task.name != "next_token" or config.dataset.get("tokenizer") is None:
        raise ConfigError(
            f"{every} needs texts of a tokeniser and the task next_token; {dataset.name} has "
            f"dataset.tokenizer={config.dataset.get('tokenizer')!r} and task {task.name!r}. Use "
            "dataset.name=instructions, or leave generate_every at None"
        )
    if federation.model.generate is None or federation.algorithm.predict is not None:
        raise ConfigError(
            f"{every}: model {config.model.name!r} with algorithm {config.algorithm.name!r} cannot "
            "generate text; use model.name=pretrained_decoder with model.keep_hidden=False, and an "
            "algorithm whose personal models have no parts of their own"
        )
    if not (dataset.y[:, 0] == IGNORED).any() or not dataset.splits[SPLIT].sizes.any():
        raise ConfigError(
            f"{every} needs {SPLIT} examples with a prompt and a completion, which is the "
            f"reference; {dataset.name} has none. Use dataset.name=instructions, or leave "
            "generate_every at None"
        )
    if jax.process_count() > 1:
        raise ConfigError(
            f"{every} works in one process only, and there are {jax.process_count()}; leave it at "
            "None and generate with the loaded run"
        )


def _check_context(federation: Federation, generation: Generation) -> None:
    """Raise an error if prompts with answers are longer than the model's context."""
    model, prompts = federation.model, next(iter(generation.prompts.values()))
    assert model.generate is not None
    generate = model.generate
    params = jax.eval_shape(model.init, jax.random.key(0), prompts.tokens)
    jax.eval_shape(
        lambda *args: generate(*args, new_tokens=generation.new_tokens, end_id=generation.end_id),
        params,
        prompts.tokens,
        prompts.mask,
    )
