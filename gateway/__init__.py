"""The main door: all that a plugin may import, besides the doors of the families.

Lazy, so that a small program that imports `gateway.x` loads nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gateway import accounts as accounts
    from gateway import controls as controls
    from gateway import events as events
    from gateway.address import Address as Address
    from gateway.address import lower as lower
    from gateway.address import quote_local_part as quote_local_part
    from gateway.authentication import passwords as passwords
    from gateway.authentication.checkpassword import Checkpassword as Checkpassword
    from gateway.authentication.checkpassword import pam_program as pam_program
    from gateway.authentication.pam import PAM_SERVICE as PAM_SERVICE
    from gateway.counters import Counters as Counters
    from gateway.counters import Mark as Mark
    from gateway.decision import Accept as Accept
    from gateway.decision import Decision as Decision
    from gateway.decision import Defer as Defer
    from gateway.decision import Discard as Discard
    from gateway.decision import Disconnect as Disconnect
    from gateway.decision import Hold as Hold
    from gateway.decision import Reject as Reject
    from gateway.endpoint import Endpoint as Endpoint
    from gateway.envelope import Account as Account
    from gateway.envelope import Birth as Birth
    from gateway.envelope import Client as Client
    from gateway.envelope import Credentials as Credentials
    from gateway.envelope import Delivery as Delivery
    from gateway.envelope import Entry as Entry
    from gateway.envelope import EntryRecipient as EntryRecipient
    from gateway.envelope import Failure as Failure
    from gateway.envelope import Notice as Notice
    from gateway.envelope import Outcome as Outcome
    from gateway.envelope import Recipient as Recipient
    from gateway.envelope import Route as Route
    from gateway.envelope import ScramKeys as ScramKeys
    from gateway.envelope import Session as Session
    from gateway.envelope import Transaction as Transaction
    from gateway.envelope import first_id as first_id
    from gateway.envelope import new_id as new_id
    from gateway.errors import ConfigError as ConfigError
    from gateway.errors import DialogueError as DialogueError
    from gateway.errors import DnsError as DnsError
    from gateway.errors import DnsNotFound as DnsNotFound
    from gateway.errors import DnsTemporary as DnsTemporary
    from gateway.errors import GatewayError as GatewayError
    from gateway.errors import MilterError as MilterError
    from gateway.errors import Place as Place
    from gateway.errors import Problem as Problem
    from gateway.errors import TlsFailed as TlsFailed
    from gateway.errors import Unreachable as Unreachable
    from gateway.faultpoint import point as point
    from gateway.hookspecs import Stages as Stages
    from gateway.hookspecs import hookimpl as hookimpl
    from gateway.interfaces import own_addresses as own_addresses
    from gateway.message import FileBody as FileBody
    from gateway.message import Message as Message
    from gateway.message import Spool as Spool
    from gateway.plugin import Context as Context
    from gateway.plugin import Plugin as Plugin
    from gateway.plugin import Section as Section
    from gateway.plugin import Site as Site
    from gateway.routing import resolve as resolve
    from gateway.services import Clock as Clock
    from gateway.services import Dns as Dns
    from gateway.services import Exchangers as Exchangers
    from gateway.services import Located as Located
    from gateway.services import a_label as a_label
    from gateway.services import is_ip as is_ip
    from gateway.settings.options import Block as Block
    from gateway.settings.units import Duration as Duration
    from gateway.settings.units import Network as Network
    from gateway.settings.units import Rate as Rate
    from gateway.settings.units import Size as Size
    from gateway.settings.units import parse_network as parse_network
    from gateway.when import When as When
    from gateway.when import mail_of as mail_of

#: name -> the module it lives in; "" is a module that is a door itself.
_HOME = {
    "Accept": "decision",
    "Account": "envelope",
    "Address": "address",
    "Birth": "envelope",
    "Block": "settings.options",
    "Checkpassword": "authentication.checkpassword",
    "Client": "envelope",
    "Clock": "services",
    "ConfigError": "errors",
    "Context": "plugin",
    "Credentials": "envelope",
    "Counters": "counters",
    "Decision": "decision",
    "Defer": "decision",
    "Delivery": "envelope",
    "DialogueError": "errors",
    "Discard": "decision",
    "Disconnect": "decision",
    "Dns": "services",
    "DnsError": "errors",
    "DnsNotFound": "errors",
    "DnsTemporary": "errors",
    "Duration": "settings.units",
    "Endpoint": "endpoint",
    "Entry": "envelope",
    "EntryRecipient": "envelope",
    "Exchangers": "services",
    "Failure": "envelope",
    "FileBody": "message",
    "GatewayError": "errors",
    "Hold": "decision",
    "Located": "services",
    "Mark": "counters",
    "Message": "message",
    "MilterError": "errors",
    "Network": "settings.units",
    "Notice": "envelope",
    "Outcome": "envelope",
    "PAM_SERVICE": "authentication.pam",
    "Place": "errors",
    "Plugin": "plugin",
    "Problem": "errors",
    "Rate": "settings.units",
    "Recipient": "envelope",
    "Reject": "decision",
    "Route": "envelope",
    "ScramKeys": "envelope",
    "Section": "plugin",
    "Session": "envelope",
    "Site": "plugin",
    "Size": "settings.units",
    "Spool": "message",
    "Stages": "hookspecs",
    "TlsFailed": "errors",
    "Transaction": "envelope",
    "Unreachable": "errors",
    "When": "when",
    "a_label": "services",
    "accounts": "",
    "controls": "",
    "events": "",
    "first_id": "envelope",
    "hookimpl": "hookspecs",
    "lower": "address",
    "mail_of": "when",
    "is_ip": "services",
    "new_id": "envelope",
    "own_addresses": "interfaces",
    "pam_program": "authentication.checkpassword",
    "parse_network": "settings.units",
    "passwords": "authentication",
    "point": "faultpoint",
    "quote_local_part": "address",
    "resolve": "routing",
}
__all__ = list(_HOME)


def lazy(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Make the `__getattr__` (PEP 562) of a door: its names are imported when they are first used.

    `homes` maps each name to the module that it lives in, below the package or, with `gateway.` before it,
    anywhere; "" is for a module that is public itself.
    """

    def find(name: str) -> Any:
        home = homes.get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if not home:
            return import_module(f"{package}.{name}")
        return getattr(import_module(home if home.startswith("gateway.") else f"{package}.{home}"), name)

    return find


__getattr__ = lazy(__name__, _HOME)
