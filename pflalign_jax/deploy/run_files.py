"""What a run on nodes keeps besides what every run does, and where its clients' states are."""

import dataclasses
import pathlib
import secrets
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

import numpy as np
from absl import logging

from pflalign_jax.errors import UserError
from pflalign_jax.federated.client_states import StagedClients
from pflalign_jax.federated.snapshot import ClientSnapshot
from pflalign_jax.runs import files, round_files
from pflalign_jax.runs.read_types import ReadError, read_object


class ElsewhereError(UserError):
    """Something was asked for that only a client's own node has."""


@dataclasses.dataclass
class RunFiles:
    """The server's files about its nodes.

    Attributes:
      workdir: the run's directory.
      names: ``[K]`` clients, in the dataset's order.
      held: rounds that the server may go back to.
    """

    workdir: pathlib.Path
    names: np.ndarray
    held: frozenset[int] = frozenset()

    def run_name(self) -> str:
        """Return the run's name, by which nodes keep its states; chosen when it is first asked for.

        Raises:
          RunError, WorkdirError: if the file cannot be read or written.
        """
        path = self.workdir / files.DEPLOYMENT
        try:
            return str(read_object(path, {"run": str}, required=True)["run"])
        except FileNotFoundError:
            files.write_json(path, {"run": secrets.token_hex(16)})
            return self.run_name()
        except (OSError, ReadError) as error:
            raise files.RunError(f"{path} cannot be read ({error}); put it back") from error

    def append(self, row: Mapping[str, Any]) -> None:
        """Write who was asked and who answered."""
        for name, why in row["refused"].items():
            logging.warning("round %d: %s of client %s: %s", row["round"], row["kind"], name, why)
        if row["missing"]:
            missing = ", ".join(row["missing"])
            logging.warning("round %d: no answer in time from client %s", row["round"], missing)
        round_files.append_nodes(self.workdir, row)

    def rounds_counted(self, until: int) -> np.ndarray:
        """Return ``[K]`` int64: the last round up to ``until`` that each client counted in."""
        position = {name: k for k, name in enumerate(self.names.tolist())}
        rounds = np.zeros(len(self.names), np.int64)
        for row in round_files.read_nodes(self.workdir):
            if row["kind"] == "train" and row["round"] <= until:
                rounds[[position[name] for name in row["counted"] if name in position]] = row[
                    "round"
                ]
        return rounds

    def held_rounds(self) -> list[int]:
        """Return the rounds that the server may go back to, ascending."""
        return sorted(self.held)


class StatesOnNodes:
    """Client states that are on nodes: here is only the round that each of them is of.

    Args:
      run_files: of the run.
    """

    reads_ahead = False

    def __init__(self, run_files: RunFiles) -> None:
        self._run_files = run_files

    def init(self, first: Any, given: Any) -> np.ndarray:
        """See `ClientStates`."""
        del first, given
        return np.zeros(len(self._run_files.names), np.int64)

    def stage(self, *arguments: Any) -> StagedClients:
        """Refuse to have the states here."""
        del arguments
        self._refuse()

    def keep(self, staged: StagedClients, new_states: Any, round_index: int) -> Any:
        """Return nothing: whoever runs the round knows whose states moved on."""
        del staged, new_states, round_index
        return ()

    def every(self, clients: Any) -> Iterator[StagedClients]:
        """Refuse to have the states here."""
        del clients
        self._refuse()

    def one(self, clients: Any, k: int) -> Any:
        """Refuse to have the states here."""
        del clients, k
        self._refuse()

    def save(self, clients: Any) -> ClientSnapshot:
        """See `ClientStates`."""
        del clients
        return ClientSnapshot(None, ())

    def restore(
        self, saved: ClientSnapshot, first: Any, given: Any, round_index: int, held: Iterable[int]
    ) -> np.ndarray:
        """See `ClientStates`."""
        del saved, first, given
        self._run_files.held = frozenset({round_index, *held})
        return self._run_files.rounds_counted(round_index)

    def hold(self, rounds: Iterable[int]) -> None:
        """See `ClientStates`."""
        self._run_files.held = frozenset(rounds)

    def _refuse(self) -> NoReturn:
        raise ElsewhereError(
            "states of clients are on their nodes and never leave them; personal models predict "
            "there, see pflalign_jax.deploy"
        )
