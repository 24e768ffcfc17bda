"""Gateways as processes, in folders that another user may enter."""

import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from peer import Gateway
from qmail_host import Host


def _folder(stack):
    """Make a folder; pytest's own are closed to the user that the gateway and Postfix become."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="peers-")))
    folder.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def gateway():
    """Give a running gateway that the tests of one file share."""
    with ExitStack() as stack:
        made = Gateway(_folder(stack))
        stack.callback(made.stop)
        made.start()
        yield made


@pytest.fixture
def gateways():
    """Give `gateways()`: a gateway of the test's own, to configure and start; it is stopped at the end."""
    with ExitStack() as stack:

        def make():
            made = Gateway(_folder(stack))
            stack.callback(made.stop)
            return made

        yield make


@pytest.fixture
def open_folder():
    """Give a folder that every user may enter."""
    with ExitStack() as stack:
        yield _folder(stack)


@pytest.fixture(scope="module")
def host():
    """Give a running gateway on a machine that has qmail's programs, shared by the tests of one file."""
    if os.geteuid():
        pytest.skip("only root can give a process a sendmail of its own")
    with ExitStack() as stack:
        made = Host(_folder(stack))
        stack.callback(made.stop)
        made.start()
        yield made
