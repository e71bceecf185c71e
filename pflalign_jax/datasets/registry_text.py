"""The datasets of language models by name, as tokens of a pretrained model; see `registry`."""

from typing import Unpack

from pflalign_jax.datasets.base import FederatedDataset
from pflalign_jax.datasets.loaders.instructions import load_instructions
from pflalign_jax.datasets.loaders.intents import load_banking77, load_clinc150
from pflalign_jax.datasets.loaders.sotu_presidents import load_sotu_presidents
from pflalign_jax.datasets.partition_examples import PartitionOptions, partition_examples


def clinc150(
    path: str,
    tokenizer: str,
    length: int = 32,
    pad_token: str | None = None,
    out_of_scope: bool = False,
    **options: Unpack[PartitionOptions],
) -> FederatedDataset:
    """Return CLINC150, 22,500 requests to an assistant in 150 intents, as tokens.

    Args:
      path, tokenizer, length, pad_token, out_of_scope: see `load_clinc150`.
      options: keyword arguments of `partition_examples`.
    """
    examples = load_clinc150(path, tokenizer, length, pad_token, out_of_scope)
    return partition_examples(examples, **options)


def banking77(
    path: str,
    tokenizer: str,
    length: int = 64,
    pad_token: str | None = None,
    **options: Unpack[PartitionOptions],
) -> FederatedDataset:
    """Return Banking77, 13,083 questions to a bank in 77 intents, as tokens.

    Args:
      path, tokenizer, length, pad_token: see `load_banking77`.
      options: keyword arguments of `partition_examples`.
    """
    return partition_examples(load_banking77(path, tokenizer, length, pad_token), **options)


def sotu_presidents(
    path: str,
    tokenizer: str,
    length: int = 64,
    vocabulary: int | None = None,
    **options: Unpack[PartitionOptions],
) -> FederatedDataset:
    """Return addresses on the State of the Union by president, to predict the next token.

    Args:
      path, tokenizer, length, vocabulary: see `load_sotu_presidents`.
      options: keyword arguments of `partition_examples`.
    """
    examples = load_sotu_presidents(path, tokenizer, length, vocabulary)
    return partition_examples(examples, **options)


def instructions(
    path: str,
    tokenizer: str,
    length: int = 256,
    template: str = "alpaca",
    client_column: str = "task",
    too_long: str = "refuse",
    end_token: str | None = None,
    pad_token: str | None = None,
    vocabulary: int | None = None,
    **options: Unpack[PartitionOptions],
) -> FederatedDataset:
    """Return your own instructions by task, to predict the tokens of their completions.

    Args:
      path, tokenizer, length, template, client_column, too_long, end_token, pad_token, vocabulary:
        see `load_instructions`.
      options: keyword arguments of `partition_examples`.
    """
    examples = load_instructions(
        path, tokenizer, length, template, client_column, too_long, end_token, pad_token, vocabulary
    )
    return partition_examples(examples, **options)
