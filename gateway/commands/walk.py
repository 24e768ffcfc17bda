"""Walks the chain with one recipient, without side effects; notes which plugin says what by which rule."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gateway.address import Address
from gateway.decision import Accept, Discard, Hold
from gateway.envelope import Client, Recipient, Session, Transaction, new_id
from gateway.hookspecs import Stages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.chain import Answer
    from gateway.commands.assembly import Assembly
    from gateway.envelope import Route
    from gateway.hookspecs import Hook

#: A client that no list names, for whom the DNS is not asked (RFC 5737, RFC 2606).
STRANGER = Client("192.0.2.1", name="stranger.invalid")


@dataclass(frozen=True, slots=True)
class Said:
    """What one stage said."""

    stage: str
    #: Who spoke; "" when nobody did.
    plugin: str
    text: str
    #: What decided, "conf.d/10.yaml:4".
    rule: str = ""
    #: Those that were asked before and had no opinion.
    silent: tuple[str, ...] = ()
    #: Mail goes no further than here.
    end: bool = False


@dataclass(slots=True)
class Walk:
    """One recipient's way; `said` is the answer."""

    assembly: Assembly
    said: list[Said] = field(default_factory=list)

    async def go(self, address: str, client: Client = STRANGER, sender: str = "") -> None:
        """Walk from RCPT to the `.qmail` file."""
        session = Session(new_id(), "command", "smtp", client)
        transaction = Transaction(new_id(), Address(sender), "smtp", session)
        recipient = Recipient.of(address)
        relay = await self._decide(
            Stages.relay, "refused 553 5.7.1: not our domain, and no relaying", transaction, recipient
        )
        if isinstance(relay, Accept):
            recipient = relay.recipient or recipient
            await self._decide(Stages.rcpt, "go on", transaction, recipient)
        for target in await self._rewrite(recipient):
            await self._target(target, transaction.sender)

    async def _decide(self, hook: Hook[Any], silence: str, *args: Any) -> Any:
        answer = await self.assembly.generation.chain.ask(hook, *args)
        stage = _name(hook)
        decision = answer.value
        if decision is None:
            self._note(stage, answer, silence, end=stage == "relay")
            return None
        going_on = isinstance(decision, Accept | Hold | Discard)
        text = self._failure(answer) if answer.failed else _words(decision)
        self._note(stage, answer, text, getattr(decision, "rule", ""), end=not going_on)
        return decision

    async def _rewrite(self, recipient: Recipient) -> list[Recipient]:
        """Do what the stage does, one plugin after the other, to see who changes what."""
        chain = self.assembly.generation.chain
        current = [recipient]
        for stem in self.assembly.generation.order["rewrite"]:
            targets: list[Recipient] = []
            for one in current:
                answer = await chain.ask_plugin(stem, Stages.rewrite, one)
                new: Any = answer.value
                targets += [one] if new is None else new if isinstance(new, list) else [new]
                if answer.failed:
                    self._note("rewrite", answer, self._failure(answer), end=True)
                elif new is not None:
                    names = ", ".join(target.address for target in targets)
                    self._note("rewrite", answer, names, targets[-1].rule, silent=())
            current = targets
        return current

    async def _target(self, recipient: Recipient, sender: Address) -> None:
        answer = await self.assembly.generation.chain.ask(Stages.route, recipient, sender)
        route: Route | None = answer.value
        if route is None:
            text = self._failure(answer) if answer.failed else "deferred: no plugin has a route"
            self._note("route", answer, text, end=True)
            return
        self._note("route", answer, f"{route.plugin} {route.destination}".strip(), route.rule)
        if route.channel == "local":
            await self._account(recipient)
        await self._exists(route.plugin, recipient)

    async def _account(self, recipient: Recipient) -> None:
        local, _, domain = recipient.address.rpartition("@")
        answer = await self.assembly.generation.chain.ask(Stages.account, local, domain)
        account = answer.value
        if account is None:
            self._note(
                "account",
                answer,
                self._failure(answer) if answer.failed else f"{local} is nobody's",
                end=answer.failed,
            )
            return
        extension = f", extension {account.ext}" if account.dash else ""
        self._note(
            "account",
            answer,
            f"{account.user} (uid {account.uid}) in {account.home}{extension}",
            account.rule,
        )

    async def _exists(self, plugin: str, recipient: Recipient) -> None:
        answer = await self.assembly.generation.chain.ask_plugin(plugin, Stages.exists, recipient)
        if answer.failed:
            self._note("exists", answer, self._failure(answer), silent=(), end=True)
            return
        if answer.value is not None:
            text = "yes" if answer.value else "no: 550 5.1.1 at RCPT, or a bounce"
            self._note("exists", answer, text, silent=(), end=not answer.value)
        if answer.value:
            await self._explain(plugin, recipient)

    async def _explain(self, plugin: str, recipient: Recipient) -> None:
        """Ask a deliver plugin what it would do, if it is one that can tell (`explain(recipient)`)."""
        explain = getattr(self.assembly.generation.plugins[plugin].instance, "explain", None)
        if explain is None:
            return
        try:
            lines = await explain(recipient)
        except Exception as error:  # noqa: BLE001 - whatever a plugin raises is what it says
            lines = [f"failed: {error}"]
        self.said += [Said("deliver", plugin, line) for line in lines]

    def _note(
        self,
        stage: str,
        answer: Answer[Any],
        text: str,
        rule: str = "",
        *,
        silent: Sequence[str] | None = None,
        end: bool = False,
    ) -> None:
        asked = self.assembly.generation.order[stage]
        before = asked[: asked.index(answer.plugin)] if answer.plugin in asked else asked
        self.said.append(
            Said(stage, answer.plugin, text, rule, tuple(before if silent is None else silent), end)
        )

    def _failure(self, answer: Answer[Any]) -> str:
        return f"failed: {self.assembly.failure(answer.plugin)}"


def _name(hook: Hook[Any]) -> str:
    name: str = hook.spec.name  # type: ignore[attr-defined]
    return name


def _words(decision: Any) -> str:
    """Write a decision as a person reads it: `Reject 5.1.1 no such user here (unknown_recipient)`."""
    kind = type(decision).__name__
    if isinstance(decision, Accept):
        return f"{kind} as {decision.recipient.address}" if decision.recipient else kind
    if isinstance(decision, Hold | Discard):
        return f"{kind} ({decision.reason})"
    reason = f" ({decision.reason})" if decision.reason else ""
    return f"{kind} {decision.status} {decision.text}{reason}"
