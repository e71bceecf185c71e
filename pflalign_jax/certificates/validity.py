"""What makes a certificate valid, and the refusal of what is not, by name."""

from typing import NamedTuple

import numpy as np

from pflalign_jax.certificates.certificate import HOLDOUT, PAC_BAYES
from pflalign_jax.datasets import SPLITS, FederatedDataset, Owned
from pflalign_jax.errors import UserError
from pflalign_jax.federated import Federation

MODELS = {PAC_BAYES: ("bound", "received", "adapted", "laplace"), HOLDOUT: ("received", "adapted")}
"""By kind of certificate, which models can be certified; the first of PAC-Bayes is the default."""

SAMPLES = ("bound", "train", "validation", "test", "all")
"""What the bound sample can be; ``"all"`` is all of a client's examples but those of the test."""


class CertificateError(UserError, ValueError):
    """A certificate that would not hold, or a question that has no answer; it says what to do."""


class Question(NamedTuple):
    """What is to be certified; see `pflalign_jax.certificates.certify`."""

    clients: str
    kind: str
    model: str | None
    split: str | None

    def filled(self) -> "Question":
        """Return the question with what None stands for.

        Raises:
          CertificateError: for an unknown word.
        """
        _choose("clients", self.clients, ("new", "train"))
        _choose("kind", self.kind, (PAC_BAYES, HOLDOUT))
        randomised = self.kind == PAC_BAYES
        model = self.model or ("bound" if randomised else "adapted")
        split = self.split or ("all" if randomised and self.clients == "new" else "bound")
        _choose(f"model of kind={self.kind!r},", model, MODELS[self.kind])
        _choose("split", split, SAMPLES)
        return self._replace(model=model, split=split)


def check_valid(federation: Federation, question: Question, own_loss: bool) -> str:
    """Refuse a certificate that would not hold, or say why it does.

    Refused are: a bound sample that took part in training the prior or the model; examples that
    rounds and step sizes are chosen on; a stratified or temporal split, which is no i.i.d. sample;
    splits of unknown origin; a task whose loss is not known to lie in [0, 1]; a model trained on
    the bound of another loss than cross-entropy; scales from second moments that the algorithm does
    not keep; clients or examples that are not there.

    Args:
      federation: whose clients they are.
      question: filled in.
      own_loss: whether the caller gives a loss in [0, 1].

    Returns:
      One sentence: why it is valid.

    Raises:
      CertificateError: naming what is not valid and what to do.
    """
    new = question.clients == "new"
    dataset = federation.dataset.new_clients if new else federation.dataset
    if dataset is None:
        raise CertificateError(
            f"{federation.dataset.name} has no new clients; make it with num_new_clients=..., or "
            "certify clients='train' with bound_fraction=..."
        )
    _check_task(federation, question, own_loss)
    _refuse_trained_on(question)
    if question.split != "bound":
        _refuse_not_random(federation.dataset, str(question.split))
    owned = bound_sample(dataset, str(question.split))
    if not len(owned.indices):
        raise CertificateError(
            f"{dataset.name}: no client has an example in split={question.split!r}; "
            + ("set bound_fraction" if question.split == "bound" else "choose another split")
        )
    who = "the clients never took part" if new else "nothing of a run reads these examples"
    if not new and question.split == "test":
        who = "training and choices use no test examples"
    what = "prior" if question.kind == PAC_BAYES else "model"
    return f"{who}, so the {what} does not depend on the bound sample, which was drawn at random."


def bound_sample(dataset: FederatedDataset, split: str | None) -> Owned:
    """Return what the clients own of a bound sample, one of `SAMPLES`."""
    if split == "all":
        parts = [dataset.splits[name] for name in SPLITS if name != "test"]
        parts += [] if dataset.bound is None else [dataset.bound]
        clients = range(dataset.num_clients)
        return Owned.from_parts(np.concatenate([p.of_client(k) for p in parts]) for k in clients)
    if split != "bound":
        return dataset.splits[str(split)]
    if dataset.bound is None:
        raise CertificateError(
            f"{dataset.name} keeps no examples for bounds; make it with bound_fraction=0.2 "
            "(--config.dataset.bound_fraction=0.2), or choose another split"
        )
    return dataset.bound


def _check_task(federation: Federation, question: Question, own_loss: bool) -> None:
    name, classes = federation.task.name, ("classification", "next_token")
    if name not in classes and not own_loss:
        raise CertificateError(
            f"task {name!r} has no loss that is known to lie in [0, 1]; pass loss=(outputs, y) -> "
            "losses in [0, 1]"
        )
    if question.model == "bound" and name not in classes:
        raise CertificateError(
            f"model='bound' is trained with a bounded cross-entropy, and task {name!r} has none; "
            "use model='received' or 'adapted'"
        )
    if question.model == "laplace" and federation.algorithm.fisher is None:
        raise CertificateError(
            "model='laplace' takes its scales from averages of squared gradients, as pflalign with "
            "plain SGD steps keeps them, and this algorithm keeps none; use model='adapted'"
        )


def _refuse_trained_on(question: Question) -> None:
    """Refuse a bound sample that the prior, or the held-out model, depends on."""
    new, split = question.clients == "new", question.split
    cure = "use split='bound', for which the dataset needs bound_fraction=..."
    if not new and split in ("train", "all"):
        raise CertificateError(
            f"split={split!r} of clients='train' took part in training the model that the "
            f"certificate would start from; {cure}"
        )
    if not new and split == "validation":
        raise CertificateError(
            "split='validation' of clients='train' is what rounds and step sizes are chosen on, "
            f"so the model depends on it; {cure}"
        )
    if question.kind == HOLDOUT and question.model == "adapted" and split in ("train", "all"):
        raise CertificateError(
            f"kind='holdout' with split={split!r}: the adapted model was trained on these "
            f"examples; {cure}, or kind='pac_bayes'"
        )


def _refuse_not_random(dataset: FederatedDataset, split: str) -> None:
    """Refuse a split that is no i.i.d. sample of its client, as far as that is known."""
    options = dataset.options
    if options is None or options["partition_file"] is not None:
        raise CertificateError(
            f"{dataset.name}: how split={split!r} was drawn is not known, since the dataset was "
            "not made by partition_examples with arguments; use split='bound'"
        )
    if options["split_by"] != "random":
        raise CertificateError(
            f"split={split!r} was drawn with split_by={options['split_by']!r} and is no i.i.d. "
            "sample; make the dataset with split_by='random', or use split='bound'"
        )


def _choose(what: str, word: object, known: tuple[str, ...]) -> None:
    if word not in known:
        raise CertificateError(f"{what} {word!r} is unknown; choose from {known}")
