"""Where a recipient goes: `rewrite`, then `route`. Free of side effects, so it also answers at RCPT."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gateway.address import Address
from gateway.envelope import expand_verp
from gateway.hookspecs import Stages

if TYPE_CHECKING:
    from gateway.chain import Chain
    from gateway.envelope import Recipient, Route

#: A recipient that becomes more than this many is refused as a loop of aliases.
LARGEST_EXPANSION = 10_000
#: The null sender.
NOBODY = Address("")


@dataclass(frozen=True, slots=True)
class Routed:
    """A recipient as `rewrite` leaves it, and its route; None when nobody gave one."""

    recipient: Recipient
    route: Route | None
    #: A plugin failed, so there is no telling: try again later.
    failed: bool = False
    #: Which plugin answered `route`, or failed.
    plugin: str = ""

    @property
    def expanded(self) -> Recipient:
        """The recipient as one of several that stand in the place of another."""
        return replace(self.recipient, expanded=True, chosen="")


async def resolve(chain: Chain, recipient: Recipient, sender: Address = NOBODY) -> list[Routed]:
    """Rewrite and route one recipient; more than one comes back when an alias names several."""
    if recipient.final:
        return [await _routed(chain, recipient, sender)]
    rewritten = await chain.transform(Stages.rewrite, recipient)
    if rewritten.failed:
        return [Routed(recipient, None, failed=True, plugin=rewritten.plugin)]
    targets: list[Recipient] = (
        rewritten.value if isinstance(rewritten.value, list) else [rewritten.value or recipient]
    )
    if len(targets) > LARGEST_EXPANSION:
        return [Routed(recipient, None, failed=True, plugin="rewrite")]
    return [await _routed(chain, target, sender) for target in targets]


async def _routed(chain: Chain, recipient: Recipient, sender: Address) -> Routed:
    answer = await chain.ask(Stages.route, recipient, expand_verp(sender, recipient.address))
    return Routed(recipient, answer.value, answer.failed, answer.plugin)
