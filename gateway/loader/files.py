"""Runs a plugin's file, and finds in it what a plugin has to have."""

from __future__ import annotations

import importlib.util
import secrets
import sys
import traceback
import types
from typing import TYPE_CHECKING, Any

from gateway.errors import Place, PluginError, Problem
from gateway.plugin import Plugin, Section

if TYPE_CHECKING:
    from gateway.loader.find import Found

_NAMESPACE = "mailward_plugins"


def settings_of(found: Found) -> type[Section]:
    """Run a plugin's file and give the model of its section; its modules stay. Raises PluginError."""
    return plugin_of(execute(found)[0], found)[1]


def execute(found: Found) -> tuple[types.ModuleType, tuple[str, ...]]:
    """Execute a plugin's file under a name of its own; also give the modules that go when it goes.

    Raises PluginError with file and line.
    """
    sys.modules.setdefault(_NAMESPACE, types.ModuleType(_NAMESPACE))
    # Bundled ones keep no state in modules, so that one is enough for all gateways in a process, and stays.
    bundled = found.origin == "bundled"
    name = f"{_NAMESPACE}.{found.stem}_{found.digest if bundled else secrets.token_hex(4)}"
    if name in sys.modules:
        return sys.modules[name], ()
    folder = [str(found.path.parent)] if found.path.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, found.path, submodule_search_locations=folder)
    if spec is None or spec.loader is None:
        raise PluginError(Problem("cannot be loaded", Place(str(found.path))))
    module = importlib.util.module_from_spec(spec)
    # Before it runs: dataclasses look their own module up.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        for loaded in _names_under(name):
            sys.modules.pop(loaded, None)
        raise blame(error, found) from error
    return module, () if bundled else _names_under(name)


def _names_under(name: str) -> tuple[str, ...]:
    return tuple(key for key in sys.modules if key == name or key.startswith(f"{name}."))


def plugin_of(module: types.ModuleType, found: Found) -> tuple[type[Plugin[Any]], type[Section]]:
    """Find the one Plugin class and the Settings of a module. Raises PluginError."""
    if found.value:
        kinds = [getattr(module, found.value.partition(":")[2])]
    else:
        kinds = [
            kind
            for kind in vars(module).values()
            if isinstance(kind, type) and issubclass(kind, Plugin) and kind.__module__ == module.__name__
        ]
    if len(kinds) != 1:
        raise PluginError(
            Problem(f"holds {len(kinds)} Plugin classes: write exactly one", Place(str(found.path)))
        )
    model = getattr(module, "Settings", Section)
    if not (isinstance(model, type) and issubclass(model, Section)):
        raise PluginError(Problem("Settings must be a subclass of Section", Place(str(found.path))))
    redefined = Section.model_fields.keys() & vars(model).get("__annotations__", {}).keys()
    if redefined and model is not Section:
        names = ", ".join(sorted(redefined))
        raise PluginError(
            Problem(f"Settings redefines {names}, which every plugin has", Place(str(found.path)))
        )
    return kinds[0], model


def blame(error: BaseException, found: Found) -> PluginError:
    """Say where in the plugin's file an error came from."""
    if isinstance(error, PluginError):
        return error
    if hasattr(error, "problems"):
        return PluginError(error.problems)
    if isinstance(error, SyntaxError) and error.filename:
        return PluginError(Problem(f"syntax error: {error.msg}", Place(error.filename, error.lineno or 0)))
    folder = str(found.path.parent if found.path.name == "__init__.py" else found.path)
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.startswith(folder)
    ]
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return PluginError(Problem(text, Place(str(found.path), (lines[-1] or 0) if lines else 0)))
