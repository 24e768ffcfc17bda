"""`accounts:` where accounts come from. The plugin looks them up by it, and root's list is made of it."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from gateway.plugin import Section

BreakCharacter = Annotated[str, Field(min_length=1, max_length=1)]


class Home(BaseModel):
    """An account that is no system user."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: Where its `.qmail` files and Maildirs are; a relative path starts at the folder that holds `conf.d`.
    home: str
    #: Who its programs run as and its files belong to; default: the owner of the home.
    uid: int | None = Field(default=None, ge=0)
    #: The same for the group; default: the group of the home.
    gid: int | None = Field(default=None, ge=0)


class VirtualAccount(Home):
    """An account that virtual domains are given to."""

    #: Separates an extension from a name in what senders write.
    separator: BreakCharacter = Field(default="-", alias="break")


class Settings(Section):
    """Where accounts come from."""

    #: Users of this machine have mail, if their home is theirs; never root.
    system: bool = False
    #: Users of this machine below this uid have none where the gateway delivers under each user's own uid.
    floor: int = Field(default=1000, ge=1)
    #: Separates a system user's name from an extension: `joe-tag`.
    separator: BreakCharacter = Field(default="-", alias="break")
    #: Gets every local part that nobody else has, whole, as its extension; unless given, `alias` in the state
    #: folder.
    alias: Home | None = None
    #: qmail's users/assign, or the users/cdb that qmail-newu makes of it; seen anew when it changes.
    assign: str = ""
    #: Name -> account.
    virtual: dict[str, VirtualAccount] = {}
