"""Output that fails is given up, and what was being done goes on."""

import errno
import os
import sys

import pytest
from rich.console import Console

from pflalign_jax.cli.output import output_may_fail


@pytest.fixture(params=["reader gone", "disk full"])
def failing(request):
    """Return a stream of text that cannot be written."""
    if request.param == "reader gone":
        reading, writing = os.pipe()
        os.close(reading)
    else:
        writing = os.open("/dev/full", os.O_WRONLY)
    with open(writing, "w") as stream:
        yield stream


def test_output_that_fails_is_given_up(failing, monkeypatch):
    monkeypatch.setattr(sys, "stdout", failing)
    with pytest.raises(OSError) as error:  # as it is without
        print("a line", flush=True)
    assert error.value.errno in (errno.EPIPE, errno.ENOSPC)
    with output_may_fail():
        print("a line", flush=True)
        Console().print("another")
        for _ in range(3000):
            print("so many that they are written")
    assert sys.stdout is failing
    failing.flush()  # as Python does at its end


def test_output_that_is_closed_stays_so(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with output_may_fail():
        print("nowhere")
        Console().print("nowhere")
    assert sys.stdout is None


def test_output_is_written_where_it_can_be(capsys):
    with output_may_fail():
        print("here")
        print("there", file=sys.stderr)
    assert capsys.readouterr() == ("here\n", "there\n")
