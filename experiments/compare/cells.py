"""Cells: comparisons or runs in one of several settings, whose results are kept in files."""

import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from pflalign_jax.runs import files, read_types

CELL = "cell.json"


def setting_of(config: ConfigDict, **others: Any) -> dict[str, Any]:
    """Return what a cell's result depends on, as its file has it.

    Args:
      config: of the cell.
      others: values of flags on which it depends, too.
    """
    setting: dict[str, Any] = files.as_written({"config": config.to_dict(), **others})
    return setting


def read(
    path: pathlib.Path, setting: Mapping[str, Any], kinds: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the fields ``kinds`` of a cell's result, None if there is none yet.

    Args:
      path: the cell's directory.
      setting: that the result must be of.
      kinds: types of the result's fields, as of `read_types.check_fields`.

    Raises:
      WorkdirError: if the file is damaged, or of another setting.
    """
    if not (path / CELL).exists():
        return None
    try:
        wanted = {"setting": dict, **kinds}
        found: dict[str, Any] = read_types.read_object(path / CELL, wanted, required=True)
    except (OSError, read_types.ReadError) as error:
        raise unreadable(path, error) from error
    if files.as_written(found.pop("setting")) != setting:
        options = " or ".join(f"--{name}" for name in setting if name != "config")
        raise files.WorkdirError(
            f"{path} was made with another config or other {options}; choose another --workdir"
        )
    return {name: found[name] for name in kinds}  # a later version may write more


def unreadable(path: pathlib.Path, error: Exception | str) -> files.WorkdirError:
    """Return the error of a cell whose file is damaged, with what is wrong in it."""
    return files.WorkdirError(
        f"{path / CELL} cannot be read ({error}); put it back, or delete {path}"
    )


def write(path: pathlib.Path, setting: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Write the result of a cell."""
    whole = files.infinities_as_text({"setting": setting, **result})
    files.write_json(path / CELL, whole)
