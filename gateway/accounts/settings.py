"""`accounts:` where accounts come from, and what they may take of the host.

The plugins look accounts up and deliver by it, and root's list is made of it.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from gateway.accounts.passwd import HIGHEST_ID
from gateway.plugin import Section
from gateway.settings.units import Size

BreakCharacter = Annotated[str, Field(min_length=1, max_length=1)]


class Home(BaseModel):
    """An account that is no system user."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: Where its `.qmail` files and Maildirs are; a relative path starts at the folder that holds `conf.d`.
    home: str
    #: Who its programs run as and its files belong to; default: the owner of the home, under root only where
    #: root alone can change which folder that is.
    uid: int | None = Field(default=None, ge=0, le=HIGHEST_ID)
    #: The same for the group; default: the group of the home.
    gid: int | None = Field(default=None, ge=0, le=HIGHEST_ID)


class VirtualAccount(Home):
    """An account that virtual domains are given to."""

    #: Separates an extension from a name in what senders write; default: `accounts.break`.
    separator: BreakCharacter | None = Field(default=None, alias="break")


class Settings(Section):
    """Where accounts come from."""

    #: Users of this machine have mail, if their home is theirs; never root.
    system: bool = False
    #: Users of this machine with a uid below this have none: they are services.
    floor: int = Field(default=1000, ge=1)
    #: Separates a name from an extension in what senders write: `joe-tag`.
    separator: BreakCharacter = Field(default="-", alias="break")
    #: Gets every local part that nobody else has, whole, as its extension; unless given, `alias` in the state
    #: folder.
    alias: Home | None = None
    #: qmail's users/assign, or the users/cdb that qmail-newu makes of it; seen anew when it changes.
    assign: str = ""
    #: Name -> account.
    virtual: dict[str, VirtualAccount] = {}


class ProgramLimits(Section):
    """What programs of an account may take; a part of the section of the plugin that starts them.

    Started as root, the gateway holds all processes of an account to them, and nothing there can raise them.
    """

    model_config = ConfigDict(extra="ignore")

    #: Memory (address space) of each program that an account's files start.
    program_memory: Size = Field(default=1024**3, ge=256 * 1024**2)
    #: Processes and threads of an account's uid at one time, where the gateway was started as root. All count
    #: that the uid has: its logins, other accounts that share it.
    program_processes: int = Field(default=1000, ge=20)
    #: Open files of each program, where the gateway was started as root.
    program_files: int = Field(default=1024, ge=64)
