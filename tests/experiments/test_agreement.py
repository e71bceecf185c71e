"""Comparisons with PFLlib: what both sides train on, and whether they agree where PFLlib is."""

import inspect
import os
import pathlib
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.agreement import comparison, ours, pfllib
from experiments.agreement.cases import CASES, chosen_names
from experiments.agreement.checkout import importable, read_checkout
from experiments.agreement.data import BatchOrders, write_digits
from experiments.agreement.errors import AgreementError
from experiments.agreement.networks import NETWORKS, params_of
from pflalign_jax import algorithms, datasets, models
from pflalign_jax.cli.command import FlagError

MAIN = """
import argparse
from flcore.servers.serveravg import FedAvg
from flcore.servers.serverper import FedPer as Per

def run(args):
    if args.model == "CNN":
        args.model = FedAvgCNN()
    if args.algorithm == "FedAvg":
        server = FedAvg(args, 0)
    elif args.algorithm == 'FedPer':
        args.head = copy.deepcopy(args.model.fc)
        args.model = BaseHeadSplit(args.model, args.head)
        server = Per(args, 0)
    else:
        raise NotImplementedError

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument('-lr', "--local_learning_rate", type=float, default=0.005)
    parser.add_argument('-al', "--alpha", default=1.0, help="a pull")
    raise SystemExit("it is read, not run")
"""


@pytest.fixture
def checkout(tmp_path):
    system = tmp_path / "PFLlib" / "system"
    system.mkdir(parents=True)
    (system / "main.py").write_text(MAIN)
    return tmp_path / "PFLlib"


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    path = tmp_path_factory.mktemp("agreement") / "digits"
    write_digits(path, 4)
    return datasets.pfllib(str(path))


def test_what_a_checkout_has_is_read_from_its_main(checkout):
    found = read_checkout(str(checkout))
    assert found.system == checkout / "system"
    assert found.defaults == {"local_learning_rate": 0.005, "alpha": 1.0}
    assert found.servers == {
        "FedAvg": ("flcore.servers.serveravg", "FedAvg", False),
        "FedPer": ("flcore.servers.serverper", "Per", True),
    }


def test_mistakes_are_named(checkout, monkeypatch):
    with pytest.raises(AgreementError, match=r"--path=/nowhere is no checkout of PFLlib.*main\.py"):
        read_checkout("/nowhere")
    with pytest.raises(AgreementError, match=r"has no algorithm 'SCAFFOLD'; it has FedAvg, FedPer"):
        pfllib.server_class(read_checkout(str(checkout)), "SCAFFOLD")
    with pytest.raises(FlagError, match=r"--algorithm=fedawg cannot be compared.*fedavg"):
        chosen_names(["fedprox", "fedawg"])
    monkeypatch.setitem(sys.modules, "torch", None)
    federation = pfllib.Federation(read_checkout(str(checkout)), "", None, None, None, None)
    with pytest.raises(AgreementError, match=r"needs PyTorch.*pflalign-jax\[bench\]"):
        pfllib.train(federation, CASES["fedavg"], None, undo=False)
    (checkout / "system" / "main.py").write_text("print()")
    with pytest.raises(AgreementError, match="does not choose among algorithms as PFLlib's does"):
        read_checkout(str(checkout))


def test_what_fails_in_another_version_is_named(checkout, monkeypatch):
    torch = SimpleNamespace(set_num_threads=lambda count: None)
    monkeypatch.setitem(sys.modules, "torch", torch)
    federation = pfllib.Federation(read_checkout(str(checkout)), "", None, None, None, None)
    with pytest.raises(
        AgreementError, match=r"PFLlib's FedAvg failed with ModuleNotFoundError: .*fl"
    ):
        pfllib.train(federation, CASES["fedavg"], None, undo=False)
    with pytest.raises(AgreementError, match=r"PFLlib's network failed with ModuleNotFoundError"):
        pfllib.first_params(federation)


def test_a_package_that_only_pfllib_needs_is_named(checkout, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace())
    servers = checkout / "system" / "flcore" / "servers"
    servers.mkdir(parents=True)
    (servers / "serveravg.py").write_text("import no_such_solver.of_cones")
    with pytest.raises(AgreementError, match=r"PFLlib's FedAvg .*; pip install no_such_solver$"):
        pfllib.check_server(read_checkout(str(checkout)), "FedAvg")


def test_modules_of_a_checkout_are_forgotten(checkout, monkeypatch):
    (checkout / "system" / "utils").mkdir()
    (checkout / "system" / "utils" / "__init__.py").write_text("where = 'PFLlib'")
    mine = SimpleNamespace(where="mine")
    monkeypatch.setitem(sys.modules, "utils", mine)
    with importable(read_checkout(str(checkout))):
        import utils

        assert utils.where == "PFLlib"
    assert sys.modules["utils"] is mine and str(checkout / "system") not in sys.path


def test_every_case_names_what_both_sides_have():
    assert chosen_names(["all"]) == list(CASES)
    for name, case in CASES.items():
        takes = inspect.signature(getattr(algorithms, name)).parameters
        assert set(case.fields) <= set(takes), name
        assert (case.undo is None) or case.departure, name


def test_parameters_of_pytorch_give_the_same_logits():
    """The layout of PyTorch, [B, C, H, W], written with the same operations in that layout."""
    rng = np.random.default_rng(0)
    shapes = [(3, 1, 5, 5), (3,), (4, 3, 5, 5), (4,), (6, 4 * 4 * 4), (6,), (10, 6), (10,)]
    tensors = [rng.normal(0, 0.3, shape).astype(np.float32) for shape in shapes]
    x = rng.normal(size=(2, 28, 28, 1)).astype(np.float32)

    @jax.jit
    def logits(z):
        for weight, bias in (tensors[:2], tensors[2:4]):
            z = jax.lax.conv_general_dilated(z, weight, (1, 1), "VALID")
            z = jax.nn.relu(z + bias[None, :, None, None])
            window = (1, 1, 2, 2)
            z = jax.lax.reduce_window(z, -jnp.inf, jax.lax.max, window, window, "VALID")
        z = jax.nn.relu(z.reshape(2, -1) @ tensors[4].T + tensors[5][None])
        return z @ tensors[6].T + tensors[7][None]

    expected = logits(jnp.moveaxis(x, -1, 1))
    model = models.cnn(10, features=(3, 4), dense=6)
    params = params_of(NETWORKS["cnn"].layers, tensors)
    assert jax.tree.map(np.shape, params) == jax.tree.map(
        lambda a: a.shape, jax.eval_shape(model.init, jax.random.key(0), x)
    )
    np.testing.assert_allclose(jax.jit(model.apply)(params, x), expected, rtol=1e-4, atol=1e-5)


def test_our_clients_take_the_batches_in_the_given_order(digits):
    """Two rounds of FedAvg are those of a plain loop over the batches that PFLlib is given."""
    orders, settings = BatchOrders(digits), ours.Settings(2, 0.1, 1, 10)
    network = NETWORKS["mlp"]._replace(ours=lambda: models.logistic(10))
    first = {"Dense_0": {"kernel": np.zeros((784, 10), np.float32), "bias": np.zeros(10)}}
    first = jax.tree.map(jnp.float32, first)
    run = ours.train("fedavg", {}, network, first, digits, orders, settings)
    sizes = digits.splits["train"].sizes
    assert sizes.min() >= 10 and (sizes % 10).any()
    loss, params = models.cross_entropy(models.logistic(10)), first
    step = jax.jit(
        lambda w, b: jax.tree.map(lambda p, g: p - 0.1 * g, w, jax.grad(loss)(w, b, None))
    )
    for orders.round in range(2):
        total = jax.tree.map(jnp.zeros_like, params)
        for k, size in enumerate(sizes):
            local, own = params, digits.splits["train"].of_client(k)[orders.of_client(k)]
            for start in range(0, size - 9, 10):  # the last batch is left out if it is not full
                rows = own[start : start + 10]
                local = step(local, models.Batch(digits.x[rows], digits.y[rows], jnp.ones(10)))
            total = jax.tree.map(lambda t, w, n=size: t + w * (n / sizes.sum()), total, local)
        params = total
    assert comparison.relative_difference(run.outcome.global_model, params) < 1e-6
    # Other rounds have other orders, and epochs of a round the same.
    orders.round = 0
    assert (orders.of_client(0) == orders.of_client(0)).all()
    first_order, orders.round = orders.of_client(0), 1
    assert (orders.of_client(0) != first_order).any()


def test_a_part_of_the_examples_keeps_the_order_of_all(digits):
    orders = BatchOrders(digits)
    whole = orders.of_client(0).tolist()
    assert orders.of_client(0, 20).tolist() == [i for i in whole if i < 20]


@pytest.mark.parametrize("round_start", ["evaluate", "evaluate_one_step", "send_models"])
def test_rounds_are_counted_where_they_begin(round_start, digits):
    """A server that sends and scores, and trains until the count ends it."""
    calls, orders = [], BatchOrders(digits)

    class Server:
        def send_models(self):
            calls.append("sent")

        def evaluate(self):
            raise AssertionError("scores are not counted here")

        evaluate_one_step = evaluate_personalized = evaluate

    server = Server()
    case = CASES["fedavg"]._replace(round_start=round_start)
    pfllib.count_rounds(2, server, case, orders)
    with pytest.raises(pfllib.EnoughRounds):
        while True:
            server.send_models()
            getattr(server, "evaluate" if round_start == "send_models" else round_start)()
            calls.append(orders.round)
    sent_last = [] if round_start == "send_models" else ["sent"]
    assert calls == ["sent", 0, "sent", 1, *sent_last]


def test_digits_are_written_as_pfllib_has_them(digits):
    assert digits.x.shape == (1797, 28, 28, 1) and digits.x.dtype == np.float32
    assert digits.client_ids.tolist() == [0, 1, 2, 3] and digits.num_classes == 10
    # No equal maxima: noise is on every pixel, also of the margin.
    assert (np.diff(np.sort(digits.x[0], axis=None)) > 0).mean() > 0.99


def test_differences_and_hits_are_counted():
    model = {"w": np.array([[3.0, 4.0], [0.0, 5.0]])}  # two clients
    mine = ours.Outcome(None, model, np.array([7, 8]))
    run = ours.OurRun({"w": np.array([[3.0, 3.0], [0.0, 4.0]])}, [], mine, {"w": 1.2 * model["w"]})
    theirs = ours.Outcome(None, {"w": np.array([[3.0, 4.0], [0.0, 5.5]])}, np.array([7, 9]))
    row = comparison.compare("feddyn", run, theirs, undone=True)
    assert row[:3] == ("feddyn", True, None) and row[-2:] == (1, 2)
    assert row[3:6] == pytest.approx((0.1, 0.2, 0.5))
    printed = comparison.table([row])
    assert [list(column.cells) for column in printed.columns] == [
        ["feddyn"], ["undone"], [""], ["1e-01"], ["2e-01"], ["5e-01"], ["1 of 2"],
    ]  # fmt: skip


AT_A_KINK = {"fedntd", "pfedme"}
"""A unit or two of theirs are at the kink of their ReLU in a second epoch, not with other steps."""


@pytest.mark.slow
@pytest.mark.parametrize("local_epochs", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_pfllib_agrees(name, local_epochs, tmp_path):
    """With a checkout of PFLlib, where PFLALIGN_PFLLIB names one."""
    pytest.importorskip("torch", reason="pip install 'pflalign-jax[bench]'")
    root = os.environ.get("PFLALIGN_PFLLIB")
    if not root:
        pytest.skip("PFLALIGN_PFLLIB names no checkout of https://github.com/TsingZ0/PFLlib")
    if name == "fedpac":
        pytest.importorskip("cvxpy", reason="PFLlib's FedPAC needs it: pip install cvxpy")
    settings = ours.Settings(2, 0.01, local_epochs, batch_size=10)
    federation = pfllib.prepare(
        read_checkout(root), pathlib.Path(tmp_path), 4, NETWORKS["mlp"], settings
    )
    *_, row = comparison.comparisons(pfllib, federation, [name])
    kink = local_epochs > 1 and name in AT_A_KINK
    if row.global_model is not None:
        assert row.global_model < (1e-4 if kink else 5e-6)
    if row.undone or not CASES[name].departure:
        assert row.personal < max(1e-4 if kink else 2e-5, 10 * row.rounding)
        assert row.agreeing == row.clients or row.rounding > 2e-5
        # A second epoch takes FedCP to a kink, where rounding leads further; before, all is equal.
        if local_epochs == 1:
            assert row.personal < 2e-5 and row.agreeing == row.clients
