"""The nodes that a Flower grid reaches, by the clients they introduce themselves as."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from absl import logging

from pflalign_jax.deploy.flower_messages import TYPES, content_of, flower, packet_of
from pflalign_jax.deploy.introductions import Introduction, introduction
from pflalign_jax.deploy.packets import Packet, RefusedError, refusal
from pflalign_jax.errors import UserError

PAUSE = 0.5
"""Seconds between two looks at what has arrived."""


class NodesError(UserError):
    """Nodes that are not there; the message says which are."""


@dataclasses.dataclass
class FlowerNodes:
    """Nodes reached over a grid; they may come, go, and come back with another Flower id.

    Attributes:
      grid: Flower's ``Grid``.
      hello: the request that a node introduces itself for.
      deadline: the most seconds for an answer.
      wait: the most seconds to wait for nodes to be there.
      pause: seconds between two looks at what has arrived.
      known: Flower id of a node that is there to what it said of itself; None: it does not belong
        to this run.
      node_of: client id to the Flower id of its node, the one that came last.
    """

    grid: Any
    hello: Packet
    deadline: float
    wait: float
    pause: float = PAUSE
    known: dict[int, Introduction | None] = dataclasses.field(default_factory=dict)
    node_of: dict[int, int] = dataclasses.field(default_factory=dict)
    _greeted: dict[str, int] = dataclasses.field(default_factory=dict)

    def introductions(self, num_clients: int) -> list[Introduction]:
        """Return what the nodes of all clients say of themselves, once they are there.

        Raises:
          NodesError: if they do not come in time.
        """

        def everyone() -> list[Introduction] | None:
            here = [self.known.get(node) for node in self.node_of.values()]
            found = [one for one in here if one is not None]
            return found if len(found) >= num_clients else None

        found = self._wait_for(everyone)
        if found is None:
            names = sorted(one.client for one in self.known.values() if one is not None)
            raise NodesError(
                f"{len(names)} of {num_clients} nodes were there after {self.wait:g} s "
                f"({', '.join(names)}); start the others, or set num-clients or wait"
            )
        if len(found) > num_clients:
            who = ", ".join(sorted(one.client for one in found))
            raise NodesError(
                f"{len(found)} nodes are there ({who}), and num-clients={num_clients}; stop those "
                "that do not take part, or set num-clients"
            )
        return found

    def present(self) -> Sequence[int]:
        """Return the clients whose nodes are there.

        Raises:
          NodesError: if there is none for too long.
        """

        def anyone() -> list[int] | None:
            here = set(self.grid.get_node_ids())
            return [client for client, node in self.node_of.items() if node in here] or None

        found = self._wait_for(anyone)
        if found is None:
            raise NodesError(
                f"no node was there for {self.wait:g} s; start them and give the same command, "
                "which goes on from the last checkpoint"
            )
        return found

    def ask(self, kind: str, requests: Mapping[int, Packet]) -> Mapping[int, Packet]:
        """Return the answers that came in time; see `pflalign_jax.deploy.federation.Nodes`.

        A node that was started again meanwhile is asked again.
        """
        answers: dict[int, Packet] = {}
        asked: dict[int, int] = {}  # client to the node that was asked last
        sent: dict[str, int] = {}  # message to client
        until = time.monotonic() + self.deadline
        while time.monotonic() < until:
            for client, request in requests.items():
                node = self.node_of[client]
                if node not in self.known:
                    asked.pop(client, None)  # away: what it was asked is lost
                elif client not in answers and asked.get(client) != node:
                    asked[client] = node
                    sent |= dict.fromkeys(self._push(kind, node, request), client)
            for message in self._pull(sent):
                client = sent.pop(message.metadata.reply_to_message_id)
                if message.has_error():
                    # It may be started again before the deadline.
                    logging.warning("node of client id %d: %s", client, message.error.reason)
                else:
                    answers[client] = _packet_of(message)
            if len(answers) == len(requests):
                break
            self._meet()
            time.sleep(self.pause)
        return answers

    def _wait_for(self, look: Callable[[], Any]) -> Any:
        """Meet nodes until ``look`` finds what it looks for; None if that takes too long."""
        until = time.monotonic() + self.wait
        while True:
            self._meet()
            found = look()
            if found is not None or time.monotonic() > until:
                return found
            time.sleep(self.pause)

    def _meet(self) -> None:
        """Ask nodes that are new who they are, and hear who has answered."""
        here = set(self.grid.get_node_ids())
        # Who comes back may be another process, with the same id where nodes have keys.
        self.known = {node: one for node, one in self.known.items() if node in here}
        self._greeted = {sent: node for sent, node in self._greeted.items() if node in here}
        greeted = {*self._greeted.values(), *self.known}
        for node in sorted(here):
            if node not in greeted:
                self._greeted |= dict.fromkeys(self._push("describe", node, self.hello), node)
        for message in self._pull(self._greeted):
            node = self._greeted.pop(message.metadata.reply_to_message_id)
            self.known[node] = None
            try:
                if message.has_error():
                    raise RefusedError(str(message.error.reason))
                one = introduction(_packet_of(message))
            except RefusedError as error:
                logging.warning("Flower's node %d does not take part: %s", node, error)
                continue
            self.known[node], self.node_of[one.client_id] = one, node

    def _push(self, kind: str, node: int, packet: Packet) -> list[str]:
        content, kind = content_of(packet), TYPES[kind]
        message = flower("app").Message(content, node, kind, ttl=self.deadline)
        return [sent for sent in self.grid.push_messages([message]) if sent is not None]

    def _pull(self, sent: Iterable[str]) -> list[Any]:
        sent = list(sent)
        return list(self.grid.pull_messages(sent)) if sent else []


def _packet_of(message: Any) -> Packet:
    """Return what a node answered; a refusal if that cannot be read."""
    try:
        return packet_of(message.content)
    except RefusedError as error:
        return refusal(str(error))
