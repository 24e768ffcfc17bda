"""What root must know of a configuration: a reader without rights makes it, and hands it over as JSON.

So nothing that root runs reads YAML, or runs a plugin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.accounts import ProgramLimits
from gateway.accounts import Settings as Accounts
from gateway.agency import AS_ACCOUNT
from gateway.authentication.checkpassword import pam_program
from gateway.authentication.pam import PAM_SERVICE
from gateway.loader.find import discover

if TYPE_CHECKING:
    from gateway.configuration import Configuration
    from gateway.settings.tree import Tree


def make(configuration: Configuration) -> dict[str, Any]:
    """Make the plan of a configuration. Raises ConfigError."""
    settings, tree = configuration.settings, configuration.tree
    gateway = settings.gateway
    return {
        "user": gateway.user,
        "user_at": tree.place("gateway", "user"),
        "state": str(gateway.state),
        "workers": configuration.workers,
        "listeners": [[one.name, str(one.address)] for one in settings.listeners],
        "files": [str(path) for one in settings.tls.certificates for path in (one.certificate, one.key)],
        "accounts": accounts(tree),
        "site": {"hostname": gateway.hostname, "postmaster": gateway.postmaster, "base": str(tree.base)},
        "plugins": _plugins(configuration),
        "limits": _limits(tree),
        "logins": _logins(tree),
    }


def accounts(tree: Tree) -> dict[str, Any]:
    """Say which accounts the configuration lists."""
    found = tree.section("accounts", Accounts)
    return {
        "virtual": {
            name: [str(tree.base / one.home), one.uid, one.gid] for name, one in found.virtual.items()
        },
        "alias": [str(tree.base / found.alias.home), found.alias.uid, found.alias.gid]
        if found.alias
        else None,
        "assign": str(tree.base / found.assign) if found.assign else "",
        "system": found.system,
        "floor": found.floor,
    }


def _limits(tree: Tree) -> dict[str, int]:
    """Say what an account's processes may take, as the section of what delivers there says."""
    (stem,) = AS_ACCOUNT
    found = tree.section(stem, ProgramLimits)
    return {
        "memory": found.program_memory,
        "processes": found.program_processes,
        "files": found.program_files,
    }


def _plugins(configuration: Configuration) -> dict[str, Any]:
    """Say where each plugin that delivers as an account stands, and what its section says."""
    tree = configuration.tree
    sections = set(tree.sections())
    found = discover(configuration.settings.plugins.folders, sections, {})
    return {
        stem: {"path": str(found[stem].path), "section": tree.plain(stem)}
        for stem in AS_ACCOUNT
        if stem in found
    }


def _logins(tree: Tree) -> dict[str, list[str]]:
    """Say which programs look at logins as root, for each plugin that asks them."""
    found = {}
    sections = tree.sections()
    if "auth_checkpassword" in sections and tree.text("auth_checkpassword", "as_root") == "true":
        found["auth_checkpassword"] = [str(one) for one in tree.plain("auth_checkpassword")["program"]]
    if "auth_pam" in sections:
        found["auth_pam"] = pam_program(tree.text("auth_pam", "service") or PAM_SERVICE)
    return found
