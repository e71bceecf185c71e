"""A user's checkout of PFLlib: what its main.py says, and its modules."""

import ast
import contextlib
import importlib
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from experiments.agreement.errors import AgreementError


class ServerClass(NamedTuple):
    """How PFLlib starts an algorithm.

    Attributes:
      module, name: where its server is.
      splits_head: whether its model is given as a body and a head.
    """

    module: str
    name: str
    splits_head: bool


class Checkout(NamedTuple):
    """What ``system/main.py`` of a checkout says; it is read, not run.

    Attributes:
      system: the folder that its modules are imported from.
      defaults: of its command line, by name.
      servers: by what ``--algorithm`` is called there.
    """

    system: pathlib.Path
    defaults: dict[str, Any]
    servers: dict[str, ServerClass]


def read_checkout(path: str) -> Checkout:
    """Return what a checkout of PFLlib has.

    Raises:
      AgreementError: if ``path`` is none, or one of a form that is not known.
    """
    system = pathlib.Path(path).expanduser() / "system"
    main = system / "main.py"
    try:
        tree = ast.parse(main.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise AgreementError(
            f"--path={path} is no checkout of PFLlib: {main} cannot be read ({error}); clone "
            "https://github.com/TsingZ0/PFLlib and give its folder"
        ) from error
    checkout = Checkout(system.resolve(), _defaults(tree), _servers(tree))
    if not checkout.servers or "local_learning_rate" not in checkout.defaults:
        raise AgreementError(
            f"{main} does not choose among algorithms as PFLlib's does; it may be of a version "
            "that this comparison was not written for, see docs/agreement.md"
        )
    return checkout


def _defaults(tree: ast.Module) -> dict[str, Any]:
    """Return the defaults of ``parser.add_argument("--name", default=...)``."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
            names = [a.value for a in node.args if isinstance(a, ast.Constant)]
            long = [name for name in names if str(name).startswith("--")]
            given = [k.value for k in node.keywords if k.arg == "default"]
            if long and given and isinstance(given[0], ast.Constant):
                found[str(long[0]).removeprefix("--")] = given[0].value
    return found


def _servers(tree: ast.Module) -> dict[str, ServerClass]:
    """Return servers by the names that ``args.algorithm`` is compared with."""
    modules = {
        alias.asname or alias.name: node.module or ""
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    found = {}
    for node in ast.walk(tree):
        if not (isinstance(node, ast.If) and isinstance(node.test, ast.Compare)):
            continue
        (compared,) = node.test.comparators
        if ast.unparse(node.test.left) != "args.algorithm" or not isinstance(
            compared, ast.Constant
        ):
            continue
        called = {
            part.func.id
            for line in node.body
            for part in ast.walk(line)
            if isinstance(part, ast.Call) and isinstance(part.func, ast.Name)
        }
        server = next((name for name in called if ".servers." in modules.get(name, "")), None)
        if server:
            split = "BaseHeadSplit" in called
            found[str(compared.value)] = ServerClass(modules[server], server, split)
    return found


PACKAGES = ("flcore", "utils")
"""PFLlib's top-level packages; their names are common, so that they stay only as long as needed."""


@contextlib.contextmanager
def importable(checkout: Checkout) -> Iterator[None]:
    """Let PFLlib's modules be imported inside, and forget them afterwards."""

    def forget() -> dict[str, Any]:
        mine = [name for name in sys.modules if name.split(".")[0] in PACKAGES]
        return {name: sys.modules.pop(name) for name in mine}

    before = forget()
    sys.path.insert(0, str(checkout.system))
    try:
        yield
    finally:
        sys.path.remove(str(checkout.system))
        forget()
        sys.modules.update(before)


def import_torch() -> Any:
    """Return PyTorch.

    Raises:
      AgreementError: if it is not installed.
    """
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise AgreementError(
            f"--framework=pfllib needs PyTorch ({error}); pip install 'pflalign-jax[bench]', a "
            "PyTorch for CPUs is enough"
        ) from error
