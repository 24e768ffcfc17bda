"""`mailward address`: the answer to "why did my mail not arrive"."""

from __future__ import annotations

import asyncio
import ipaddress
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from gateway.commands.common import conf_option, json_option, load, print_json, print_table

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.commands.walk import Said


@click.command(
    epilog="""\b
Examples:
  mailward address info@example.org
  mailward address joe@example.com --client 192.0.2.7 --sender ann@example.org"""
)
@click.argument("address")
@click.option("--client", default="", help="IP address that sends; a host that nobody knows unless given.")
@click.option("--sender", default="", help="Envelope sender; the null sender unless given.")
@conf_option
@json_option
def address(address: str, client: str, sender: str, conf: Path | None, as_json: bool) -> None:
    """Walk the chain with ADDRESS and show which plugin says what, by which file and line.

    Nothing is sent or changed, and no running gateway is needed. Exit 1 when such mail would not arrive.
    """
    from gateway.commands.assembly import Assembly
    from gateway.commands.walk import STRANGER, Walk
    from gateway.envelope import Client

    if client:
        try:
            ipaddress.ip_address(client)
        except ValueError:
            raise click.BadParameter(f"{client} is no IP address", param_hint="--client") from None
    walk = Walk(Assembly.of(load(conf)))
    asyncio.run(walk.go(address, Client(client) if client else STRANGER, sender))
    if as_json:
        print_json(map(asdict, walk.said))
    else:
        print_table(("stage", "plugin", "says", "by", "silent"), map(_row, walk.said))
    if any(said.end for said in walk.said):
        click.get_current_context().exit(1)


def _row(said: Said) -> tuple[str, str, str, str, str]:
    return said.stage, said.plugin or "(nobody)", said.text, said.rule, " ".join(said.silent)
