import jax
import numpy as np
import pytest
from toy import dataset, mesh

from pflalign_jax.federated.sharding import place_clients, place_data


@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_every_clients_data_is_on_its_own_device(num_devices):
    data = dataset()
    devices = mesh(num_devices)
    placement = place_clients(data.splits["train"].sizes, num_devices)
    placed = place_data(data, placement, devices, splits=list(data.splits), longest=30)
    for split, block in placed.splits.items():
        shards = {s.device: np.asarray(s.data)[0] for s in block.x.addressable_shards}
        assert len(shards) == num_devices
        owned = data.splits[split]
        for k in range(data.num_clients):
            d, row = placement.device[k], placement.row[k]
            start, size = int(block.start[d, row]), int(block.size[d, row])
            mine = owned.indices[owned.offsets[k] : owned.offsets[k + 1]]
            assert size == len(mine)
            found = shards[devices.devices[d]][start : start + size]
            np.testing.assert_array_equal(found, data.x[mine])
            np.testing.assert_array_equal(block.y[d, start : start + size], data.y[mine])
            assert int(placed.ids[d, row]) == data.client_ids[k]


def test_devices_are_balanced():
    work = np.random.default_rng(0).integers(1, 100, 200)
    placement = place_clients(work, 8)
    loads = np.bincount(placement.device, weights=work)
    assert loads.max() / loads.mean() < 1.01
    for d in range(8):
        rows = placement.row[placement.device == d]
        assert sorted(rows) == list(range(len(rows)))


def test_client_states_are_spread_over_the_devices():
    from toy import ALGORITHMS, MODEL

    from pflalign_jax.federated import federate

    federation = federate(ALGORITHMS["pflalign"](), MODEL, dataset(), mesh=mesh(2))
    state, _ = federation.run_round(federation.init(jax.random.key(0)))
    for leaf in jax.tree.leaves(state.clients):
        assert [shard.data.shape[0] for shard in leaf.addressable_shards] == [1, 1]
