"""What every command shares: where the configuration is, and how errors are told."""

from __future__ import annotations

import os
from pathlib import Path

import click

from gateway.errors import ConfigError

DEFAULT = Path("/etc/mailward/conf.d")

conf_option = click.option(
    "--conf",
    type=click.Path(path_type=Path),
    help="Folder of the configuration; else $MAILWARD_CONF, else /etc/mailward/conf.d.",
)


def configuration_folder(conf: Path | None) -> Path:
    """Find the configuration; there is no silent fall-back to the demo. Raises ConfigError."""
    folder = conf or Path(os.environ.get("MAILWARD_CONF") or DEFAULT)
    if folder.is_dir():
        return folder
    raise ConfigError(
        f"no configuration at {folder}: `mailward init DIR` writes one, `mailward run --demo` needs none"
    )
