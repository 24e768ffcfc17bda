"""Gateways as processes, in folders that another user may enter."""

import os
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from peer import Gateway, folder_of
from qmail_host import Host


@pytest.fixture(scope="module")
def gateway():
    """Give a running gateway that the tests of one file share."""
    with ExitStack() as stack:
        made = Gateway(folder_of(stack))
        stack.callback(made.stop)
        made.start()
        yield made


@pytest.fixture
def gateways():
    """Give `gateways()`: a gateway of the test's own, to configure and start; it is stopped at the end."""
    with ExitStack() as stack:

        def make():
            made = Gateway(folder_of(stack))
            stack.callback(made.stop)
            return made

        yield make


@pytest.fixture
def open_folder():
    """Give a folder that every user may enter."""
    with ExitStack() as stack:
        yield folder_of(stack)


@pytest.fixture(scope="module")
def host():
    """Give a running gateway on a machine that has qmail's programs, shared by the tests of one file."""
    if os.geteuid():
        pytest.skip("only root can give a process a sendmail of its own")
    with ExitStack() as stack:
        made = Host(folder_of(stack))
        stack.callback(made.stop)
        made.start()
        yield made
