"""Nodes in this process: requests are function calls, and what is sent can be looked at."""

from pflalign_jax.deploy.federation import greeting
from pflalign_jax.deploy.introductions import introduction
from pflalign_jax.deploy.node import open_node
from pflalign_jax.deploy.packets import config_hash
from pflalign_jax.runs.config import default_config, resolve


def small(**fields):
    """Return a config of three clients of digits, a second for all rounds."""
    config = default_config()
    config.rounds, config.eval_every = 3, 1
    config.dataset.num_clients, config.dataset.fraction = 3, 0.15
    config.dataset.validation_fraction = 0.2
    config.model.name = "logistic"
    config.algorithm.learning_rate = 1.0
    config.checkpoint_every = 1
    for name, value in fields.items():
        *sections, field = name.split("__")
        place = config
        for section in sections:
            place = place[section]
        place[field] = value
    return config


class Postman:
    """Brings packets to nodes and back at once.

    ``on_request`` and ``on_answer`` may change or lose (None) what is sent, ``(kind, client id,
    packet) -> packet``; nodes of the clients in ``away`` are not there.
    """

    def __init__(self, nodes):
        self.nodes = {node.client_id: node for node in nodes}
        self.sent, self.answered = [], []
        self.on_request = self.on_answer = lambda kind, client_id, packet: packet
        self.away = set()

    def present(self):
        return [k for k in self.nodes if k not in self.away]

    def ask(self, kind, requests):
        answers = {}
        for k, request in requests.items():
            request = self.on_request(kind, k, request)
            if request is None:
                continue
            self.sent.append((kind, k, request))
            answer = self.on_answer(kind, k, self.nodes[k].answer(kind, request))
            if answer is not None:
                self.answered.append((kind, k, answer))
                answers[k] = answer
        return answers


def open_nodes(config, directory, clients=("0", "1", "2")):
    return [open_node(config, directory / client, client) for client in clients]


def introductions(config, nodes):
    request = greeting(config_hash(resolve(config)))
    return [introduction(node.answer("describe", request)) for node in nodes]
