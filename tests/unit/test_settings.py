import gc
import time
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import AfterValidator, BaseModel, Field, SecretStr

from gateway.errors import ConfigError, Place
from gateway.plugin import Section
from gateway.settings import Block, ConfigPath, Settings, Tree, describe, wrong
from gateway.settings.units import Address, Duration

BAD = Path(__file__).parent.parent / "badconfig"
PLUGINS = {"accounts", "rcpthosts", "remote", "virtual_domains"}


class Anything(BaseModel):
    model_config = {"extra": "allow"}


class Hosts(Block):
    #: Where to.
    hosts: list[Address] = Field(min_length=1)
    #: The secret word.
    password: SecretStr = SecretStr("")


def _even(number: int) -> int:
    if number % 2:
        raise wrong("should be even")
    return number


class Remote(Section):
    """A section with one of everything."""

    #: Domain -> where its mail goes;
    #: a second line.
    routes: dict[str, Address | Hosts] = {}
    #: Doors.
    doors: list[str | Hosts] = []
    #: How.
    mode: Literal["fast", "safe"] = "safe"
    break_: str = Field(default="-", alias="break")
    #: For each try.
    timeout: Duration = 60.0
    file: ConfigPath = Path("control/routes")
    places: list[ConfigPath] = []
    evens: list[Annotated[int, AfterValidator(_even)]] = []
    strict: bool | str = False
    default: Hosts | None = None


def parse(*texts, base=Path("/srv/site")):
    return Tree.parse({f"conf.d/{i}.yaml": text for i, text in enumerate(texts, 1)}, base)


def values(*texts):
    tree = parse(*texts)
    return {name: tree.section(name, Anything).model_dump() for name in tree.sections()}


def problems(*texts, model=Remote):
    with pytest.raises(ConfigError) as caught:
        parse(*texts).section("remote", model)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("folder", sorted(BAD.iterdir()), ids=lambda folder: folder.name)
def test_every_problem_is_told_with_file_and_line(folder):
    found = ""
    try:
        tree = Tree.load(folder / "conf.d")
        found = "\n".join(map(str, tree.unknown_sections(Settings.names() | PLUGINS)))
        Settings.of(tree)
    except ConfigError as error:
        found = str(error)
    assert found == (folder / "want").read_text().rstrip("\n")


def test_only_true_and_false_are_booleans_and_only_plain_decimals_numbers():
    text = (
        "x: {a: [true, false, True, no, on, y], "
        "b: [0, 42, -7, 010, 0x1f, 0o7, 22:22, 1_000, 1.50], c: 2026-01-31}"
    )
    assert values(text)["x"] == {
        "a": [True, False, "True", "no", "on", "y"],
        "b": [0, 42, -7, "010", "0x1f", "0o7", "22:22", "1_000", "1.50"],
        "c": "2026-01-31",
    }


def test_quoted_text_is_text_and_keys_are_always_text():
    assert values("x: {1: '5', true: \"true\", no: !!str 7, null: '', 22:22: 'null'}")["x"] == {
        "1": "5",
        "true": "true",
        "no": "7",
        "null": "",
        "22:22": "null",
    }


@pytest.mark.parametrize("word", ["no", "on", "yes", "True", "0", "1", '"true"'])
def test_no_other_word_passes_for_a_boolean(word):
    assert problems(f"remote: {{dry_run: {word}}}") == [
        "conf.d/1.yaml:1: remote.dry_run: should be true or false"
    ]


def test_text_that_a_setting_takes_beside_a_boolean_stays_text():
    assert parse("remote: {strict: no}").section("remote", Remote).strict == "no"


def test_mappings_merge_lists_append_and_scalars_replace():
    first = "x: {a: 1, list: [1, 2], deep: {p: 1}}\ny: {z: 1}"
    assert values(first, "x: {a: 2, list: [3], deep: {q: 2}, new: !replace [9]}") == {
        "x": {"a": 2, "list": [1, 2, 3], "deep": {"p": 1, "q": 2}, "new": [9]},
        "y": {"z": 1},
    }


def test_replace_starts_afresh():
    first = "x: {a: 1, list: [1, 2], deep: {p: 1}, kind: {p: 1}}"
    second = "x: {a: !replace 5, list: !replace [3], deep: !replace {q: 2}, kind: !replace text}"
    assert values(first, second)["x"] == {"a": 5, "list": [3], "deep": {"q": 2}, "kind": "text"}
    assert values(first, "x: !replace {b: 1}", "x: {c: 2}")["x"] == {"b": 1, "c": 2}


def test_the_tag_replace_does_not_change_what_a_scalar_is():
    assert values("x: {a: !replace true, b: !replace '5', c: !replace 5}")["x"] == {
        "a": True,
        "b": "5",
        "c": 5,
    }


@pytest.mark.parametrize(
    ("section", "key", "one", "two"),
    [
        ("virtual_domains.domains", "example.org", "abc", "xyz"),
        ("accounts.virtual", "abc", "{home: /srv/abc}", "{home: /srv/abc, uid: 5001}"),
        ("remote.routes", '""', '"a:25"', "{hosts: ['b:25']}"),
    ],
)
def test_one_domain_account_or_route_has_one_value_over_all_files(section, key, one, two):
    def text(value):
        name, inner = section.split(".")
        return f"{name}:\n  {inner}:\n    {key}: {value}"

    with pytest.raises(ConfigError) as caught:
        parse(text(one), text(two))
    assert [problem.place for problem in caught.value.problems] == [Place("conf.d/2.yaml", 3, 5)]
    assert "conf.d/1.yaml:3" in str(caught.value)
    assert values(text(one), text(one)) == values(text(one))
    assert values(text(one), text(f"!replace {two}")) == values(text(two))


def test_a_domain_in_two_spellings_has_one_value_too():
    with pytest.raises(
        ConfigError, match=r"2.yaml:1: .*Example.ORG: another value stands at conf.d/1.yaml:1"
    ):
        parse("virtual_domains: {domains: {example.org: a}}", "virtual_domains: {domains: {Example.ORG: b}}")
    parse("virtual_domains: {domains: {example.org: a}}", "virtual_domains: {domains: {Example.ORG: a}}")


def test_an_alias_is_a_tree_of_its_own():
    first = "x: {a: &a {list: [1]}, b: *a}"
    assert values(first, "x: {b: {list: [2]}}")["x"] == {"a": {"list": [1]}, "b": {"list": [1, 2]}}


@pytest.mark.parametrize(
    "text",
    [
        "x: &x [*x]",
        "x: " + "[" * 60 + "]" * 60,
        "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
        + "".join(
            f"{n}: &{n} [{','.join([f'*{o}'] * 10)}]\n" for o, n in zip("abcdefg", "bcdefgh", strict=True)
        ),
    ],
    ids=["endless", "deep", "laughs"],
)
def test_aliases_cannot_make_endless_trees(text):
    with pytest.raises(ConfigError, match="nested too deeply, or too large"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("x: [*.example.org]", r'1\.yaml:1: .*must stand in quotes: "\*\.example\.org"'),
        ("x: *example", r'in quotes: "\*example"'),
        ("x: [::1]", "must stand in quotes"),
        ("x: @local", "must stand in quotes"),
        ("x: a: b", "must stand in quotes"),
        ("x:\n\ty: 1", "1.yaml:2: .*tabs do not indent"),
        ("x: [a, b", "1.yaml:[12]: no valid YAML"),
        ("x: y\nz: \x01", "1.yaml:2: no valid YAML: control characters"),
    ],
)
def test_broken_yaml_is_told_with_its_usual_cause(text, hint):
    with pytest.raises(ConfigError, match=hint):
        parse(text)


def test_an_empty_section_is_present_and_an_empty_key_has_its_default():
    tree = parse("remote:\nother: {}\n", "remote:\n  doors:\n  mode:\n")
    assert tree.sections() == ["remote", "other"]
    assert tree.section("remote", Remote) == tree.section("absent", Remote)
    assert tree.digest("remote") != tree.digest("absent") == ""
    assert problems("remote: {doors: , colour: }") == ["conf.d/1.yaml:1: remote.colour: unknown key"]


def test_nearest_names_come_from_the_model_at_that_place():
    text = """
remote:
  tiemout: 5m
  brake: "+"
  enable: true
  routes:
    a.example: {hosts: ["a:25"], passwort: x}
    b.example: {host: ["a:25"]}
  doors:
    - {hosts: ["a:25"], pasword_file: x}
"""
    assert problems(text) == [
        "conf.d/1.yaml:3: remote.tiemout: unknown key (did you mean timeout?)",
        "conf.d/1.yaml:4: remote.brake: unknown key (did you mean break?)",
        "conf.d/1.yaml:5: remote.enable: unknown key (did you mean enabled?)",
        "conf.d/1.yaml:7: remote.routes.a.example.passwort: unknown key (did you mean password?)",
        "conf.d/1.yaml:8: remote.routes.b.example.hosts: must be given",
        "conf.d/1.yaml:8: remote.routes.b.example.host: unknown key (did you mean hosts?)",
        "conf.d/1.yaml:10: remote.doors[0].pasword_file: unknown key (did you mean password_file?)",
    ]


def test_a_union_gives_one_problem_for_one_place():
    text = """
remote:
  routes: {a: bad, b: 5, c: [x], d: {hosts: [bad]}, e: {hosts: []}}
  doors: [5, [x]]
  strict: [1]
"""
    address = "write an address as host:port, *:25, [::1]:25 or unix:/path"
    assert problems(text) == [
        f"conf.d/1.yaml:3: remote.routes.a: {address}",
        f"conf.d/1.yaml:3: remote.routes.b: {address}",
        f"conf.d/1.yaml:3: remote.routes.c: {address}",
        f"conf.d/1.yaml:3: remote.routes.d.hosts[0]: {address}",
        "conf.d/1.yaml:3: remote.routes.e.hosts: should have at least 1 item",
        "conf.d/1.yaml:4: remote.doors[0]: should be text in quotes or a mapping",
        "conf.d/1.yaml:4: remote.doors[1]: should be text or a mapping",
        "conf.d/1.yaml:5: remote.strict: should be true or false or text",
    ]


def test_places_hold_after_appending_and_replacing():
    tree = parse(
        "remote:\n  doors: [a, b]\n  evens:\n    - 2\n",
        "remote:\n  doors:\n    - c\n  evens: !replace\n    - 4\n    - 5\n",
    )
    assert tree.place("remote", "doors", 0) == Place("conf.d/1.yaml", 2, 11)
    assert tree.place("remote", "doors", 2) == Place("conf.d/2.yaml", 3, 7)
    assert tree.place("remote", "doors", 9) == Place("conf.d/1.yaml", 2, 3)
    assert tree.place("nothing", "doors") is None
    assert tree.origin("remote", "doors", 9) is None
    with pytest.raises(ConfigError) as caught:
        tree.section("remote", Remote)
    assert str(caught.value) == "conf.d/2.yaml:6: remote.evens[1]: should be even"


def test_what_was_written_is_never_printed():
    text = """
remote:
  default: {hosts: ['a:25'], password: [hunter2]}
  doors: [{hosts: 1, password: hunter2}]
  mode: hunter2
"""
    told = problems(text)
    assert len(told) == 3
    assert "hunter2" not in str(told)


def test_a_secret_may_stand_in_a_file(tmp_path):
    (tmp_path / "word").write_text("hunter2\nnot this\n")
    text = "remote: {default: {hosts: ['a:25'], password_file: word}}"
    tree = parse(text, base=tmp_path)
    settings = tree.section("remote", Remote)
    assert settings.default.password.get_secret_value() == "hunter2"
    shown = {key: (value, place) for key, value, place in tree.effective(settings, "remote")}
    assert shown["remote.default.password"] == ("**********", Place("conf.d/1.yaml", 1, 37))
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ("password_file: gone", "cannot be read: No such file or directory"),
        ("password: x, password_file: y", "give password or password_file, not both"),
        ("password_file: 5", "should be a path"),
    ],
)
def test_a_secret_that_cannot_be_had_is_a_problem_of_its_line(keys, problem):
    assert problems(f"remote: {{default: {{hosts: ['a:25'],\n  {keys}}}}}") == [
        f"conf.d/1.yaml:2: remote.default.password_file: {problem}"
    ]


def test_relative_paths_start_at_the_folder_that_holds_conf_d(tmp_path):
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "1.yaml").write_text("remote: {places: [a, /etc/b]}")
    tree = Tree.load(tmp_path / "conf.d")
    settings = tree.section("remote", Remote)
    assert settings.places == [tmp_path / "a", Path("/etc/b")]
    assert settings.file == tmp_path / "control/routes"
    assert Settings.of(tree).gateway.state == tmp_path / "var"
    assert Settings.of(Tree.load(tmp_path / "conf.d", Path("/work"))).gateway.state == Path("/work/var")


def test_files_are_read_in_lexical_order_and_leftovers_ignored(tmp_path):
    leftovers = (".hidden.yaml", "10.yaml~", "10.yaml.dpkg-new", "x.dpkg-old.yaml", "README")
    for name in ("20.yaml", "10.yaml", "9.yaml", *leftovers):
        (tmp_path / name).write_text(f"x: {{last: '{name}', all: ['{name}']}}")
    found = Tree.load(tmp_path).section("x", Anything).model_dump()
    assert found == {"last": "9.yaml", "all": ["10.yaml", "20.yaml", "9.yaml"]}


def test_no_folder_and_no_file_say_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match=r"gone: No such file or directory; .*--conf.*mailward init"):
        Tree.load(tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"no \*\.yaml file in it; `mailward init`"):
        Tree.load(tmp_path)


def test_files_that_cannot_be_read_are_all_told(tmp_path):
    (tmp_path / "1.yaml").write_bytes(b"x: 1\ny: \xff\n")
    (tmp_path / "2.yaml").mkdir()
    (tmp_path / "3.yaml").write_text("x: [")
    with pytest.raises(ConfigError) as caught:
        Tree.load(tmp_path)
    told = [str(problem.place).partition("/")[2] for problem in caught.value.problems]
    assert sorted(told) == ["1.yaml:2", "2.yaml", "3.yaml:2"]


def test_a_digest_changes_with_the_values_alone():
    one, moved, other = parse("x: {a: 1}"), parse("\n\nx:\n  a: 1 # same"), parse("x: {a: 2}")
    assert one.digest("x") == moved.digest("x") != other.digest("x")


def test_text_of_single_values():
    tree = parse("x: {a: false, b: 5, c: word, d: [1], e: }")
    assert [tree.text("x", key) for key in "abcdef"] == ["false", "5", "word", "", "", ""]
    assert tree.text("y", "a") == ""


def test_a_validator_sees_the_context_it_is_given():
    seen = []

    class Model(Section):
        a: Annotated[int, AfterValidator(lambda n, info: seen.append(dict(info.context)) or n)] = 1

    parse("", base=Path("/b")).section("x", Model, {"more": 1})
    assert seen == [{"base": Path("/b"), "more": 1}]


def test_core_settings_have_sane_defaults(monkeypatch):
    monkeypatch.setattr("socket.getfqdn", lambda: "mx.example.org")
    core = Settings.of(parse(""))
    assert (core.gateway.hostname, core.gateway.postmaster) == ("mx.example.org", "postmaster@mx.example.org")
    assert (core.gateway.workers, core.gateway.state) == ("auto", Path("/srv/site/var"))
    assert (core.limits.message_size, core.limits.hops, core.queue.lifetime) == (50 << 20, 100, 604800)
    assert core.listeners == () == core.plugins.folders == core.journal.outputs


def test_the_example_of_the_design():
    core = Settings.of(
        parse(
            """
gateway:
  {hostname: mail.example.org., state: /var/mail, workers: auto, user: mailward, postmaster: a@b.example}
listeners:
  - {protocol: smtp, address: "*:25"}
  - {name: inner, protocol: smtp, address: "unix:/run/mailward/smtp"}
limits:    {message_size: 10M, recipients: 10, sessions: 20, sessions_per_client: 5}
queue:     {lifetime: 3d, concurrency: {per_destination: 2}}
journal:   {keep: 10d, max_size: 1G, outputs: [{to: stdout, format: console}, {to: log/events}]}
plugins:   {folders: [/etc/mailward/plugins, plugins]}
"""
        )
    )
    assert (core.gateway.hostname, core.gateway.user) == ("mail.example.org", "mailward")
    assert [(listener.name, str(listener.address)) for listener in core.listeners] == [
        ("smtp-25", "*:25"),
        ("inner", "unix:/run/mailward/smtp"),
    ]
    assert (core.limits.message_size, core.limits.idle) == (10 << 20, 300)
    assert core.queue.lifetime == 3 * 86400
    assert core.queue.concurrency.model_dump() == {"local": 20, "remote": 100, "per_destination": 2}
    assert [(o.to, o.format) for o in core.journal.outputs] == [
        ("stdout", "console"),
        (Path("/srv/site/log/events"), "json"),
    ]
    assert core.plugins.folders == (Path("/etc/mailward/plugins"), Path("/srv/site/plugins"))


def test_a_machine_without_a_usable_name_is_told_to_set_one(monkeypatch):
    monkeypatch.setattr("socket.getfqdn", lambda: "my_laptop")
    with pytest.raises(ConfigError, match=r"^gateway\.hostname: should be a host name such as"):
        Settings.of(parse("limits:"))


def test_effective_values_say_where_they_come_from():
    tree = parse(
        "limits:\n  hops: 50\nlisteners:\n  - {protocol: smtp, address: '*:25'}", "limits: {idle: 1m}"
    )
    shown = {key: (value, str(place)) for key, value, place in tree.effective(Settings.of(tree))}
    assert shown["limits.hops"] == (50, "conf.d/1.yaml:2")
    assert shown["limits.idle"] == ("1m", "conf.d/2.yaml:1")
    assert shown["limits.message_size"] == ("50M", "default")
    assert shown["listeners[0].address"] == ("*:25", "conf.d/1.yaml:4")
    assert shown["listeners[0].name"] == ("smtp-25", "default")
    assert shown["plugins.folders"] == ([], "default")


def test_what_is_named_like_a_secret_is_masked_whatever_its_type():
    class Model(Section):
        api_token: str = ""
        turkey: str = ""

    tree = parse("x: {api_token: hunter2, turkey: bird}")
    shown = {key: value for key, value, _ in tree.effective(tree.section("x", Model), "x")}
    assert (shown["x.api_token"], shown["x.turkey"]) == ("**********", "bird")


def test_describe_reads_comments_types_and_defaults():
    options = {option.name: option for option in describe(Remote)}
    comment = "Domain -> where its mail goes; a second line."
    assert options["routes"] == ("routes", "mapping of text to host:port | mapping", "{}", False, comment)
    assert options["routes.*.hosts"][1:] == ("list of host:port", None, True, "Where to.")
    assert options["doors[].password"][1:] == ("secret", '""', False, "The secret word.")
    assert options["mode"][1:] == ("fast | safe", "safe", False, "How.")
    assert options["timeout"][1:] == ("time", "1m", False, "For each try.")
    assert options["break"][1:4] == ("text", '"-"', False)
    assert options["deadline"].default == "30s"
    assert options["enabled"].comment.startswith("Run this plugin")


def test_every_core_setting_is_documented():
    assert [option.name for option in describe(Settings) if not option.comment] == []


def cost(call, size):
    """Give the CPU seconds of one call: the best of three, so that a busy machine does not count.

    Nor does what other tests have left in memory, which the collector would walk.
    """
    spent = []
    gc.disable()
    try:
        for _ in range(3):
            start = time.thread_time()
            call(size)
            spent.append(time.thread_time() - start)
    finally:
        gc.enable()
    return min(spent)


def assert_linear(call, size):
    """Ten times as much takes about ten times as long; if the cost were quadratic it would be a hundred."""
    assert cost(call, size) < 40 * cost(call, size // 10)


def test_thousands_of_keys_load_in_linear_time():
    def load(number):
        lines = "".join(f"    d{i}.example.org: u{i}\n" for i in range(number))
        parse(f"virtual_domains:\n  domains:\n{lines}").section("virtual_domains", Anything)

    assert_linear(load, 10_000)


def test_thousands_of_mistakes_are_told_in_linear_time():
    def load(number):
        lines = "".join(f"    d{i}.example.org: {{host: x}}\n" for i in range(number))
        with pytest.raises(ConfigError) as caught:
            parse(f"remote:\n  routes:\n{lines}").section("remote", Remote)
        assert len(caught.value.problems) == 2 * number

    assert_linear(load, 1000)
