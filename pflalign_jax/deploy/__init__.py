"""The same algorithms on clients' own machines; `pflalign_jax.deploy.flower` runs them there."""

from pflalign_jax.deploy.federation import DeployedFederation, Nodes
from pflalign_jax.deploy.node import Node, open_node
from pflalign_jax.deploy.packets import Packet, RefusedError
from pflalign_jax.deploy.server import train_on_nodes

__all__ = [
    "DeployedFederation",
    "Node",
    "Nodes",
    "Packet",
    "RefusedError",
    "open_node",
    "train_on_nodes",
]
