"""`mailward address`: the answer to "why did my mail not arrive"."""

from __future__ import annotations

import asyncio
import ipaddress
from dataclasses import asdict
from typing import TYPE_CHECKING, TextIO

import click

from gateway.commands.common import conf_option, json_option, load, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from gateway.commands.assembly import Assembly
    from gateway.commands.walk import Said
    from gateway.envelope import Client


@click.command(
    epilog="""\b
Examples:
  mailward address info@example.org
  mailward address joe@example.com --client 192.0.2.7 --sender ann@example.org
  mailward address --batch addresses.txt --json > new.jsonl"""
)
@click.argument("address", required=False)
@click.option(
    "--batch",
    type=click.File(encoding="utf-8", errors="surrogateescape"),
    help="File of addresses, one a line; - for standard input. With --json: one line for each address.",
)
@click.option("--client", default="", help="IP address that sends; a host that nobody knows unless given.")
@click.option("--sender", default="", help="Envelope sender; the null sender unless given.")
@conf_option
@json_option
def address(
    address: str | None, batch: TextIO | None, client: str, sender: str, conf: Path | None, as_json: bool
) -> None:
    """Walk the chain with ADDRESS and show which plugin says what, by which file and line.

    Nothing is sent or changed, and no running gateway is needed. Exit 1 when such mail would not arrive.
    """
    from gateway.commands.assembly import Assembly
    from gateway.commands.walk import STRANGER
    from gateway.envelope import Client

    if (address is None) == (batch is None):
        raise click.UsageError("give one ADDRESS, or --batch FILE")
    if address == "":
        raise click.BadParameter("it is empty; info@example.org is one", param_hint="ADDRESS")
    if client:
        try:
            ipaddress.ip_address(client)
        except ValueError:
            raise click.BadParameter(f"{client} is no IP address", param_hint="--client") from None
    assembly = Assembly.of(load(conf))
    who = Client(client) if client else STRANGER
    if batch is not None:
        arrives = asyncio.run(_batch(assembly, batch, who, sender, as_json=as_json))
    else:
        said = asyncio.run(_walk(assembly, address or "", who, sender))
        arrives = _arrives(said)
        if as_json:
            print_json(map(asdict, said))
        else:
            print_table(("stage", "plugin", "says", "by", "silent"), map(_row, said))
    if not arrives:
        click.get_current_context().exit(1)


async def _walk(assembly: Assembly, address: str, client: Client, sender: str) -> list[Said]:
    from gateway.commands.walk import Walk

    walk = Walk(assembly)
    await walk.go(address, client, sender)
    return walk.said


async def _batch(
    assembly: Assembly, lines: Iterable[str], client: Client, sender: str, *, as_json: bool
) -> bool:
    """Walk with each address and print it as it comes; tell whether mail to all of them would arrive."""
    all_arrive = True
    for address in filter(None, (line.strip() for line in lines if not line.startswith("#"))):
        said = await _walk(assembly, address, client, sender)
        all_arrive = all_arrive and _arrives(said)
        if as_json:
            print_json([{"address": address, "arrives": _arrives(said), "steps": list(map(asdict, said))}])
        else:
            columns = ("address", "stage", "plugin", "says", "by", "silent")
            print_table(columns, ((address, *_row(one)) for one in said))
    return all_arrive


def _arrives(said: list[Said]) -> bool:
    return not any(one.end for one in said)


def _row(said: Said) -> tuple[str, str, str, str, str]:
    return said.stage, said.plugin or "(nobody)", said.text, said.rule, " ".join(said.silent)
