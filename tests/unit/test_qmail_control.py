"""`qmail_control`: a directory of control files as a layer below conf.d."""

import pytest

from gateway.errors import ConfigError
from gateway.settings import Settings
from gateway.settings.tree import Tree


def tree(base, yaml="", **control):
    folder = base / "control"
    folder.mkdir()
    for name, text in control.items():
        (folder / name).write_text(text)
    return Tree.parse({"conf.d/10.yaml": f"qmail_control: control\n{yaml}"}, base)


LINES = {
    "me": ("gateway", "hostname", "mx.example.org"),
    "bouncefrom": ("bounces", "sender", "mx.example.org"),
    "bouncehost": ("bounces", "host", "mx.example.org"),
    "envnoathost": ("percenthack", "envnoathost", "mx.example.org"),
    "helohost": ("remote", "helo", "mx.example.org"),
    "localiphost": ("rcpthosts", "localiphost", "mx.example.org"),
    "smtpgreeting": ("gateway", "greeting", "mx.example.org"),
}
NUMBERS = {
    "databytes": ("limits", "message_size", "45"),
    "timeoutsmtpd": ("limits", "idle", "45s"),
    "timeoutconnect": ("remote", "timeout_connect", "45s"),
    "timeoutremote": ("remote", "timeout", "45s"),
    "queuelifetime": ("queue", "lifetime", "45s"),
}
LISTS = {
    "badmailfrom": "badmailfrom",
    "locals": "locals",
    "percenthack": "percenthack",
    "rcpthosts": "rcpthosts",
    "smtproutes": "remote",
    "virtualdomains": "virtual_domains",
}


@pytest.mark.parametrize("name", LINES)
def test_a_file_of_one_line_is_a_setting(tmp_path, name):
    section, key, value = LINES[name]
    found = tree(tmp_path, **{name: "mx.example.org \t\nnot this\n"})
    assert found.text(section, key) == value
    assert str(found.place(section, key)) == f"{tmp_path}/control/{name}:1"


@pytest.mark.parametrize("name", NUMBERS)
def test_a_file_of_a_number_is_a_setting(tmp_path, name):
    section, key, value = NUMBERS[name]
    assert tree(tmp_path, **{name: "45x\n"}).text(section, key) == value


@pytest.mark.parametrize("name", LISTS)
def test_a_list_stays_in_its_file(tmp_path, name):
    found = tree(tmp_path, **{name: "example.org\n"})
    assert found.text(LISTS[name], "file") == f"{tmp_path}/control/{name}"


def test_concurrency_has_two_files(tmp_path):
    found = Settings.of(tree(tmp_path, concurrencylocal="3\n", concurrencyremote="4\n"))
    assert (found.queue.concurrency.local, found.queue.concurrency.remote) == (3, 4)


@pytest.mark.parametrize(
    ("control", "address"),
    [
        ({"doublebounceto": "joe"}, "joe@mx.example"),
        ({"doublebouncehost": "h.example"}, "postmaster@h.example"),
        ({"doublebounceto": "", "doublebouncehost": "h.example"}, "@h.example"),
    ],
)
def test_two_files_say_who_gets_double_bounces(tmp_path, control, address):
    assert tree(tmp_path, me="mx.example\n", **control).text("bounces", "double_bounce_to") == address


def test_conf_d_wins_and_lists_append(tmp_path):
    yaml = "rcpthosts: {domains: [more.example]}\nremote: {helo: mine.example}\nlimits: {message_size: 5K}\n"
    found = tree(tmp_path, yaml, rcpthosts="example.org\n", helohost="theirs.example\n", databytes="9\n")
    assert found.text("rcpthosts", "domains", 0) == "more.example"
    assert found.text("rcpthosts", "file").endswith("/rcpthosts")
    assert found.text("remote", "helo") == "mine.example"
    assert Settings.of(found).limits.message_size == 5 * 1024


def test_replace_leaves_nothing_of_the_layer(tmp_path):
    found = tree(tmp_path, "rcpthosts: !replace {domains: [example.org]}\n", rcpthosts="a.example\n")
    assert found.text("rcpthosts", "file") == ""


def test_without_databytes_a_message_may_have_any_size(tmp_path):
    assert Settings.of(tree(tmp_path, me="mx.example\n")).limits.message_size == 0


def test_numbers_too_small_for_a_timeout_are_what_qmail_made_of_them(tmp_path):
    assert Settings.of(tree(tmp_path, timeoutsmtpd="0\n", queuelifetime="x\n")).limits.idle == 1.0


def test_a_wrong_value_is_told_with_its_file(tmp_path):
    with pytest.raises(ConfigError, match=r"control/me:1: gateway\.hostname: should be a host name"):
        Settings.of(tree(tmp_path, me="no name\n"))


def test_a_folder_that_is_not_there_is_told_with_its_place(tmp_path):
    with pytest.raises(ConfigError, match=r"conf\.d/10\.yaml:1.*is no folder of control files"):
        Tree.parse({"conf.d/10.yaml": "qmail_control: nowhere\n"}, tmp_path)


def test_a_changed_file_changes_the_digest_of_its_section_alone(tmp_path):
    before = tree(tmp_path, helohost="a.example\n", bouncehost="a.example\n")
    (tmp_path / "control" / "helohost").write_text("b.example\n")
    after = Tree.parse({"conf.d/10.yaml": "qmail_control: control\n"}, tmp_path)
    assert before.digest("remote") != after.digest("remote")
    assert before.digest("bounces") == after.digest("bounces")
