from gateway import Recipient, resolve
from gateway.testing import Bench


async def routed(tmp_path, conf, address):
    (found,) = await resolve(Bench(tmp_path).build(conf).chain, Recipient.of(address))
    return found


async def test_the_gateways_own_name_is_local_by_default(tmp_path):
    found = await routed(tmp_path, "", "u@MAIL.example.org")
    assert (found.recipient.claimed, found.route.plugin) == ("locals", "dot_qmail")
    assert found.recipient.address == "u@MAIL.example.org"


async def test_a_list_replaces_the_default_and_matches_exactly(tmp_path):
    conf = "locals: {domains: [a.example]}"
    for address, plugin in (
        ("u@A.example", "dot_qmail"),
        ("u@x.a.example", "remote"),
        ("u@mail.example.org", "remote"),
    ):
        assert (await routed(tmp_path, conf, address)).route.plugin == plugin


async def test_an_empty_list_makes_nothing_local(tmp_path):
    assert (await routed(tmp_path, "locals: {domains: []}", "u@mail.example.org")).route.plugin == "remote"


async def test_the_route_names_the_line_of_the_file(tmp_path):
    (tmp_path / "locals").write_text("\nb.example\n")
    found = await routed(tmp_path, "locals: {file: locals}", "u@b.example")
    assert found.route.rule == f"{tmp_path}/locals:2: b.example"
