"""`when:`: a plugin is asked about the mail that it is for, and mistakes are told before any mail comes."""

import pytest

from gateway import Address, Stages, events
from gateway.errors import ConfigError
from gateway.testing import Bench, delivery, entry, message, recipient, session, transaction

HEAD = "from gateway import Plugin, Reject, hookimpl\nclass P(Plugin):\n"
REFUSES = HEAD + "    @hookimpl\n    def rcpt(self, recipient):\n        return Reject('5.7.1', 'no')\n"


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


async def says(bench, when, about=None, to="info@example.org"):
    chain = bench.chain(f"one: {{when: {when}}}", one=REFUSES)
    answer = await chain.ask(Stages.rcpt, about or transaction(), recipient(to))
    return answer.plugin == "one"


CONDITIONS = [
    ("{}", True),
    ("{listener: mx}", True),
    ("{listener: [submission, mx]}", True),
    ("{listener: [submission]}", False),
    ("{authenticated: false}", True),
    ("{authenticated: true}", False),
    ("{networks: [192.0.2.0/24]}", True),
    ("{networks: ['2001:db8::/32', 198.51.100.1]}", False),
    ("{domains: [Example.ORG]}", True),
    ("{domains: [.org]}", True),
    ("{domains: [.example.org]}", False),
    ("{domains: [example.com]}", False),
    ("{listener: mx, domains: [example.com]}", False),
    ("{listener: mx, authenticated: false, networks: [192.0.2.7], domains: [example.org]}", True),
]


async def test_all_conditions_must_be_met_and_one_entry_of_each(bench):
    names = [f"one_{number:02}" for number in range(len(CONDITIONS))]
    yaml = "".join(f"{name}: {{when: {when}}}\n" for name, (when, _) in zip(names, CONDITIONS, strict=True))
    chain = bench.chain(yaml, **dict.fromkeys(names, REFUSES))
    said = [await chain.ask_plugin(name, Stages.rcpt, transaction(), recipient()) for name in names]
    assert [(when, bool(one.value)) for (when, _), one in zip(CONDITIONS, said, strict=True)] == CONDITIONS


async def test_a_login_counts_and_the_call_that_is_not_made_is_not_counted(bench):
    known = transaction(session=session(user="ann"))
    assert await says(bench, "{authenticated: true}", known)
    assert not await says(bench, "{authenticated: false}", known)
    chain = bench.chain("one: {when: {authenticated: true}}", one=REFUSES)
    await chain.ask(Stages.rcpt, transaction(), recipient())
    await chain.ask(Stages.rcpt, known, recipient())
    (figures,) = [one for one in chain.figures() if one.plugin == "one"]
    assert (figures.asked, figures.answers) == (1, 1)


async def test_mail_that_was_born_here_has_no_listener_no_login_and_no_network(bench):
    born = transaction("", session=None, origin="bounce")
    assert not await says(bench, "{networks: [0.0.0.0/0, '::/0']}", born)
    assert not await says(bench, "{listener: mx}", born)
    assert await says(bench, "{authenticated: false}", born)


async def test_where_a_stage_has_all_recipients_one_is_enough(bench):
    source = HEAD + "    @hookimpl\n    def data(self):\n        return Reject('5.7.1', 'no')\n"
    chain = bench.chain("one: {when: {domains: [b.example]}}", one=source)
    assert (await chain.ask(Stages.data, transaction(to=["x@a.example", "y@b.example"]))).value
    assert not (await chain.ask(Stages.data, transaction(to=["x@a.example"]))).value


BEHIND = HEAD + (
    "    @hookimpl\n    def outgoing(self, message):\n"
    "        message.prepend('X-Seen', 'yes')\n        return message\n"
    "    @hookimpl\n    def retry(self):\n        return 5.0\n"
    "    @hookimpl\n    def bounce(self):\n        raise RuntimeError('asked')\n"
)


async def test_behind_the_queue_the_facts_of_the_entry_count(bench):
    chain = bench.chain(
        "one: {when: {listener: mx, networks: [192.0.2.7], domains: [b.example]}}", one=BEHIND
    )
    facts = {"listener": "mx", "client_ip": "192.0.2.7"}
    ours = delivery(entry(to=["x@b.example"], facts=facts))
    for attempt, asked in ((ours, True), (delivery(entry(to=["x@b.example"])), False)):
        edited = await chain.transform(Stages.outgoing, attempt, message())
        assert (edited.value.values("X-Seen") == ["yes"]) is asked
        assert ((await chain.ask(Stages.retry, attempt, None)).plugin == "one") is asked
        assert (await chain.ask(Stages.bounce, attempt.entry, [])).failed is asked


async def test_routing_knows_the_domain_alone(bench):
    source = HEAD + (
        "    @hookimpl\n    def rewrite(self, recipient):\n"
        "        return recipient.at('seen@' + recipient.address.domain)\n"
    )
    chain = bench.chain("one: {when: {domains: [b.example]}}", one=source)
    moved = [
        (await chain.transform(Stages.rewrite, recipient(f"x@{name}"))).value
        for name in ("a.example", "b.example")
    ]
    assert [str(one.address) for one in moved] == ["x@a.example", "seen@b.example"]


async def test_a_route_by_the_sender_has_conditions_too(bench):
    source = HEAD.replace("Reject", "Route") + (
        "    @hookimpl\n    def route(self, recipient, sender):\n"
        "        return Route('one', 'remote', sender.domain)\n"
    )
    chain = bench.chain("one: {when: {domains: [b.example]}, before: [locals]}", one=source)
    found = [
        (await chain.ask(Stages.route, recipient(f"x@{name}"), Address("ann@c.example"))).value.destination
        for name in ("a.example", "b.example")
    ]
    assert found == ["a.example", "c.example"]


async def test_events_are_shown_by_their_own_fields(bench):
    source = (
        "from gateway import Plugin, hookimpl\nclass P(Plugin):\n"
        "    @hookimpl\n    def event(self, event):\n"
        "        self.site.state.joinpath('seen').open('a').write(event.listener)\n"
    )
    (bench.base / "state").mkdir()
    chain = bench.chain("one: {when: {listener: mx}}", one=source)
    chain.emit(events.SessionClosed(listener="mx"))
    chain.emit(events.SessionClosed(listener="other"))
    await chain.drain()
    assert (bench.base / "state/seen").read_text() == "mx"


@pytest.mark.parametrize(
    ("hook", "when", "said"),
    [
        (
            "mail(self)",
            "{domains: [a.example]}",
            "one.when.domains: one speaks at mail, where recipients are not",
        ),
        ("connect(self)", "{domains: [a.example]}", "one.when.domains: one speaks at connect"),
        (
            "rewrite(self)",
            "{listener: mx}",
            "one.when.listener: one speaks at rewrite, where the client is not",
        ),
        ("open_queue(self)", "{authenticated: true}", "one.when.authenticated: one speaks at open_queue"),
        ("data(self)", "{networks: [192.0.2.1/24]}", "one.when.networks"),
        ("data(self)", "{sender: [a.example]}", "one.when.sender"),
        (
            "data(self)",
            "{listener: mxx}",
            "one.when.listener[0]: there is no listener mxx (did you mean mx?)",
        ),
    ],
)
def test_a_condition_that_cannot_be_told_is_an_error_with_its_place(bench, hook, when, said):
    yaml = f"listeners: [{{name: mx, protocol: smtp, address: '127.0.0.1:0'}}]\none:\n  when: {when}"
    with pytest.raises(ConfigError) as error:
        bench.chain(yaml, one=HEAD + f"    @hookimpl\n    def {hook}:\n        pass\n")
    assert f"conf.d/site.yaml:3: {said}" in str(error.value)


async def test_an_observer_is_told_where_a_condition_cannot_be_known(bench):
    source = HEAD + (
        "    @hookimpl\n    def disconnect(self, session):\n        session.helo += 'told'\n"
        + REFUSES[len(HEAD) :]
    )
    chain = bench.chain("one: {when: {domains: [a.example], listener: mx}}", one=source)
    ended = session()
    chain.tell(Stages.disconnect, ended)
    await chain.drain()
    assert ended.helo == "told"
