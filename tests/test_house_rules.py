"""The rules that keep the house one to live in, read from its files.

A change that breaks a rule shows here with the file and line; docs/design-notes.md says why each exists.
"""

import ast
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GATEWAY = ROOT / "gateway"
PLUGINS = ROOT / "plugins"
DOORS = {"gateway", "gateway.smtp", "gateway.queue", "gateway.milter"}
#: A file imports only what stands above it, or its own family.
ORDER = (  # noqa: SIM905 - one name a line would be a screen
    "errors endpoint faultpoint decision address message envelope errand events interfaces "
    "controls settings journal log services counters signals link passing "
    "hookspecs authentication when plugin accounts deadline chain isolation agency loader configuration "
    "routing queue server smtp milter reception answering serving listeners partition agent "
    "operations archiving qmail drops submit backups worker workers console supervisor testing commands"
).split()
PURE = [
    "gateway/address.py",
    "gateway/decision.py",
    "gateway/smtp/framing.py",
    "gateway/smtp/dialogue.py",
    "gateway/smtp/login.py",
    "gateway/smtp/talk.py",
    "gateway/smtp/wire.py",
    "gateway/smtp/reply.py",
    "gateway/smtp/sasl.py",
    "gateway/queue/retry.py",
    "gateway/queue/filter.py",
    "gateway/controls/cdb.py",
    "gateway/settings/yamltree.py",
    "gateway/settings/qmail_control.py",
    "gateway/milter/packets.py",
    "gateway/milter/wire.py",
    "gateway/milter/states.py",
    "gateway/milter/edits.py",
    "gateway/milter/content.py",
    "gateway/milter/facts.py",
    "gateway/milter/verdict.py",
    "gateway/smtp/offer.py",
    "gateway/smtp/parameters.py",
    "gateway/smtp/target.py",
    "plugins/dot_qmail/parser.py",
    "plugins/relay_control/tcprules.py",
    "plugins/remote/dane.py",
    "plugins/remote/mime.py",
    "plugins/remote/parts.py",
    "plugins/remote/seven_bit.py",
    "plugins/remote/sts_policy.py",
]
IMPURE = {
    "socket",
    "asyncio",
    "os",
    "time",
    "pathlib",
    "datetime",
    "random",
    "subprocess",
    "threading",
    "ssl",
}
#: Of an impure module, what only computes with its arguments.
COMPUTES = {"time.strftime", "time.gmtime"}
#: Files over the limit, each with the reason why it is not two.
LONG = {
    "gateway/envelope.py": "all that mail is while it moves, beside each other",
    "gateway/events.py": "the vocabulary: one class an event, to be read in one place",
    "gateway/worker.py": "the composition of a process, start to stop",
    "gateway/workers/pool.py": "the life of all workers, start to stop",
    "gateway/reception.py": "every stage of reception, in mail order",
    "gateway/chain.py": "the walk, and what it counts",
    "gateway/queue/store.py": "the contract of every store, in one place",
    "gateway/queue/memory.py": "the whole contract of queue/store.py",
    "gateway/milter/server.py": "a session with an MTA, start to end",
    "gateway/milter/packets.py": "every packet of the protocol, beside each other",
    "plugins/aliases/__init__.py": "its hooks, and how a name is followed to its end",
    "plugins/dot_qmail/__init__.py": "its hooks and what they tell",
    "plugins/dot_qmail/execute.py": "every kind of .qmail line",
    "plugins/relay_control/__init__.py": "its hooks and settings",
    "plugins/remote/__init__.py": "its hooks and the reuse of connections",
    "plugins/postgres_queue/statements.py": "every statement of SQL, beside each other",
    "plugins/postgres_queue/store.py": "the whole contract of queue/store.py",
    "plugins/postgres_queue/links.py": "a connection, what it demands, and what its errors mean",
    "plugins/postgres_queue/rows.py": "every column of two tables, there and back",
    "plugins/postgres_queue/limits.py": "every statement of limits beside its call",
    "plugins/postgres_queue/writer.py": "one group commit, and what became of it",
    "plugins/sqlite_queue/disk.py": "all that lies beside the rows, and how damage is found",
    "plugins/sqlite_queue/shard.py": "every statement of SQL, beside each other",
    "plugins/sqlite_queue/store.py": "the whole contract of queue/store.py",
}
GATEWAY_LINES, PLUGIN_LINES = 300, 150


def sources(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def short(path):
    return str(path.relative_to(ROOT))


def tree_of(path):
    return ast.parse(path.read_text("utf-8"), str(path))


def free_for_types(tree):
    """Give the nodes below `if TYPE_CHECKING:`."""
    blocks = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    ]
    return {id(node) for block in blocks for part in block.body for node in ast.walk(part)}


def imports(path, *, types_too=False):
    """Give (line, module) of every absolute import; `from gateway import x` counts as gateway.x there."""
    tree = tree_of(path)
    free = set() if types_too else free_for_types(tree)
    for node in ast.walk(tree):
        if id(node) in free:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.lineno, node.module
            if node.module == "gateway":
                yield from ((node.lineno, f"gateway.{name.name}") for name in node.names)


# Rule 1: plugins use doors, and nobody a plugin.


@pytest.mark.parametrize("path", sources("plugins", "contrib"), ids=short)
def test_plugins_import_only_doors(path):
    tree = tree_of(path)
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    wrong = []
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            modules = [] if node.level else [node.module]
        else:
            # `import gateway` would give a plugin every module behind the door.
            modules = [f"{name.name}." for name in node.names]
        wrong += [
            f"{short(path)}:{node.lineno}: {module}"
            for module in modules
            if module.split(".")[0] in ("gateway", "tests") and module not in DOORS
        ]
    assert wrong == []


def test_what_plugins_take_from_the_door_is_on_it():
    import gateway

    wrong = []
    for path in sources("plugins", "contrib"):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ImportFrom) and node.module == "gateway" and not node.level:
                wrong += [f"{short(path)}: {n.name}" for n in node.names if n.name not in gateway.__all__]
    assert wrong == []


def test_nobody_imports_a_plugin_by_name():
    stems = {path.stem for path in PLUGINS.iterdir() if not path.name.startswith(("_", "."))}
    wrong = [
        f"{short(path)}:{line}: {module}"
        for path in sources("gateway", "plugins", "contrib", "tests")
        for line, module in imports(path, types_too=True)
        if module.split(".")[0] == "plugins" or module in stems
    ]
    assert wrong == []


# Rule 2: imports run downwards.


def test_imports_of_the_gateway_run_downwards():
    families = {path.stem if path.is_file() else path.name for path in GATEWAY.iterdir()}
    families -= {"__init__", "__pycache__", "py"}
    unknown = {name for name in families if not name.startswith(("_", ".")) and name not in ORDER}
    assert unknown == set(), "give each new file its place in ORDER"
    wrong = []
    for path in sources("gateway"):
        family = path.relative_to(GATEWAY).with_suffix("").parts[0]
        if family == "__init__":
            continue
        above = set(ORDER[: ORDER.index(family) + 1])
        wrong += [
            f"{short(path)}:{line}: {module}"
            for line, module in imports(path)
            if module.startswith("gateway.")
            and module.split(".")[1] in ORDER
            and module.split(".")[1] not in above
        ]
    assert wrong == []


def test_the_design_notes_draw_that_order():
    text = (ROOT / "docs/design-notes.md").read_text("utf-8")
    drawn = re.search(r"^```\n(errors .*?)^```", text, re.MULTILINE | re.DOTALL)[1]
    # Behind two blanks a line says what its names have in common.
    assert " ".join(re.split(r"\s{2,}", line)[0] for line in drawn.splitlines()).split() == ORDER


# Rule 3: what reads protocols touches nothing else.


@pytest.mark.parametrize("name", PURE)
def test_pure_files_touch_no_clock_disk_or_network(name):
    path = ROOT / name
    taken = {module.split(".")[0] for _, module in imports(path)} & IMPURE
    wrong = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in taken:
            wrong.append(f"{node.lineno}: from {node.module}")
        if isinstance(node, ast.Attribute) and ast.unparse(node).split(".")[0] in taken:
            wrong += [f"{node.lineno}: {ast.unparse(node)}"] if ast.unparse(node) not in COMPUTES else []
        if isinstance(node, ast.Await | ast.AsyncFunctionDef | ast.AsyncFor | ast.AsyncWith):
            wrong.append(f"{node.lineno}: await")
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("open", "print", "input"):
            wrong.append(f"{node.lineno}: {ast.unparse(node.func)}")
    assert wrong == []


# Rule 5: no state in modules.

CHANGES = {
    "append",
    "add",
    "update",
    "setdefault",
    "pop",
    "popitem",
    "clear",
    "extend",
    "insert",
    "remove",
    "discard",
}
#: Filled while its module is imported, by the classes below it, and never after.
WRITTEN_AT_IMPORT = {("gateway/events.py", "VOCABULARY")}


@pytest.mark.parametrize("path", sources("gateway", "plugins"), ids=short)
def test_modules_keep_no_state(path):
    tree = tree_of(path)
    names = set()
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    names -= {name for file, name in WRITTEN_AT_IMPORT if file == short(path)}
    wrong = [f"{node.lineno}: global" for node in ast.walk(tree) if isinstance(node, ast.Global)]
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    for node in (inner for function in functions for inner in ast.walk(function)):
        changed = None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGES:
            changed = node.func.value
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            changed = node.value
        if isinstance(changed, ast.Name) and changed.id in names and not _local(changed.id, node, functions):
            wrong.append(f"{node.lineno}: {changed.id} is changed")
    assert wrong == []


def _local(name, node, functions):
    """Tell whether a function that holds the node has a variable of its own of this name."""
    for function in functions:
        if any(inner is node for inner in ast.walk(function)):
            arguments = {one.arg for one in ast.walk(function.args) if isinstance(one, ast.arg)}
            stores = {
                one.id
                for one in ast.walk(function)
                if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)
            }
            if name in arguments | stores:
                return True
    return False


# Rule 6: files and functions that fit a screen.


def test_files_are_short_or_have_a_reason():
    long = {}
    for path in sources("gateway", "plugins"):
        lines = len(path.read_text("utf-8").splitlines())
        if lines > (PLUGIN_LINES if path.is_relative_to(PLUGINS) else GATEWAY_LINES):
            long[short(path)] = lines
    assert {name: lines for name, lines in long.items() if name not in LONG} == {}
    assert [name for name in LONG if not (ROOT / name).is_file()] == []


def test_functions_are_short():
    lengths = {}
    for path in sources("gateway", "plugins"):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lengths[f"{short(path)}:{node.lineno} {node.name}"] = node.end_lineno - node.lineno + 1
    assert statistics.median(lengths.values()) < 10
    assert {name: lines for name, lines in lengths.items() if lines > 40} == {}


# Every bundled plugin is described, tested, and opens with what it is.

BUNDLED = sorted(
    path / "__init__.py" if path.is_dir() else path
    for path in PLUGINS.iterdir()
    if path.suffix == ".py" or (path / "__init__.py").is_file()
)


def stem_of(path):
    return path.parent.name if path.name == "__init__.py" else path.stem


@pytest.mark.parametrize("path", BUNDLED, ids=stem_of)
def test_each_plugin_is_described_and_tested(path):
    stem = stem_of(path)
    assert (ast.get_docstring(tree_of(path)) or "").startswith(f"{stem}: ")
    assert (ROOT / f"docs/plugins/{stem}.md").read_text("utf-8").startswith(f"# {stem}\n")
    tests = ROOT / f"tests/plugins/test_{stem}.py"
    assert "def test_" in tests.read_text("utf-8")


def test_the_plugins_that_always_run_are_bundled():
    from gateway.loader import CORE

    assert CORE - {stem_of(path) for path in BUNDLED} == set()


def test_every_stage_has_a_plugin_that_uses_it():
    from gateway.hookspecs import SPECS

    used = set()
    # The plugins of the page are run by test_docs.py.
    for path in [*sources("plugins", "contrib", "tests"), ROOT / "docs/plugins.md"]:
        if path.samefile(__file__):
            continue
        # In a test a plugin may also stand in a string, with its line ends escaped.
        text = path.read_text("utf-8").replace("\\n", "\n")
        used |= set(re.findall(r"@hookimpl\s+(?:async\s+)?def (\w+)", text))
    assert set(SPECS) - used == set()


# The doors.


def names_for_types(path):
    tree = tree_of(path)
    free = free_for_types(tree)
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and id(node) in free]
    return [(node.lineno, name.asname) for node in nodes for name in node.names if name.asname]


def test_the_door_gives_what_it_shows_the_type_checker():
    import gateway

    names = [name for _, name in names_for_types(GATEWAY / "__init__.py")]
    assert sorted(names) == sorted(gateway.__all__)
    for name in names:
        assert getattr(gateway, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        gateway.Nothing  # noqa: B018


def test_the_door_is_sorted():
    text = (GATEWAY / "__init__.py").read_text("utf-8")
    lines = re.findall(r"^    from (\S+) import (\w+) as", text, re.MULTILINE)
    assert lines == sorted(lines)


@pytest.mark.parametrize(
    ("statement", "loaded"),
    [
        ("import gateway", {"gateway"}),
        ("import gateway.errors", {"gateway", "gateway.errors"}),
        ("from gateway import Address", {"gateway", "gateway.address", "gateway.errors"}),
        ("import gateway.commands", {"gateway", "gateway.commands"}),
    ],
)
def test_doors_are_lazy(statement, loaded):
    code = f"{statement}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=ROOT).stdout
    modules = set(json.loads(out))
    assert {name for name in modules if name.split(".")[0] == "gateway"} == loaded
    heavy = {"pydantic", "click", "structlog", "yaml", "dns", "aiosmtpd", "asyncio", "rich"}
    assert heavy & modules == set()
