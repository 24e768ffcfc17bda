"""contrib's plugins are tested as a site's own would be."""

from pathlib import Path

import pytest

from gateway.testing.fixtures import mailward_clock, mailward_dns, mailward_gateway, mailward_plugin

__all__ = ["mailward_clock", "mailward_dns", "mailward_gateway", "mailward_plugin"]
FOLDER = Path(__file__).parents[2] / "contrib" / "plugins"


@pytest.fixture
def contrib():
    """Give the path of one of contrib's plugins by its stem."""
    return lambda stem: FOLDER / f"{stem}.py"
