"""What models of settings are made of: Block, ConfigPath, `wrong`; and `describe`, which reads them."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    SecretStr,
    TypeAdapter,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from gateway.settings.units import Written

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

_SECRET = re.compile(r"(?:^|_)(?:password|secret|key|token)$")
_MASK = "**********"
_WORDS = {
    bool: "true | false",
    int: "number",
    float: "number",
    str: "text",
    Path: "path",
    SecretStr: "secret",
}


def wrong(message: str, *at: str | int) -> PydanticCustomError:
    """Make the error by which a validator points below the value it checks: to a key, or an index."""
    return PydanticCustomError("wrong", "{message}", {"message": message, "at": at})


def _absolute(path: Path, info: ValidationInfo) -> Path:
    return Path(info.context["base"], path) if info.context and "base" in info.context else path


#: A path; a relative one starts at the folder that holds `conf.d`.
ConfigPath = Annotated[Path, AfterValidator(_absolute)]


class Block(BaseModel):
    """A group of settings: unknown keys are errors, and `X_file: PATH` gives any secret `X`.

    A secret is a field of type `SecretStr`; of its file the first line counts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _read_secrets(cls, data: Any, info: ValidationInfo) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        for name in secrets_of(cls):
            if f"{name}_file" in data:
                data[name] = _secret(data, name, info)
                del data[f"{name}_file"]
        return data


def secrets_of(model: type[BaseModel]) -> list[str]:
    """Give the keys of a model's secrets."""
    return [
        info.alias or name
        for name, info in model.model_fields.items()
        if SecretStr in (info.annotation, *get_args(info.annotation))
    ]


def _secret(data: dict[str, Any], name: str, info: ValidationInfo) -> str:
    key = f"{name}_file"
    if name in data:
        raise wrong(f"give {name} or {key}, not both", key)
    if not isinstance(data[key], str):
        raise wrong("should be a path", key)
    try:
        return _absolute(Path(data[key]), info).read_text("utf-8").partition("\n")[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise wrong(f"cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8'}", key) from None


def masked(key: str, value: Any) -> Any:
    """Hide the value of a key that is named like a secret."""
    return _MASK if value and _SECRET.search(key) else value


class Option(NamedTuple):
    """One setting, as the reference shows it."""

    #: The key; below a list `listeners[].name`, below a mapping `routes.*.hosts`.
    name: str
    #: What may be written: `text`, `list of networks`, `a | b`.
    type: str
    #: As written in YAML; None when the key is required or its default is computed (the comment says how).
    default: str | None
    #: Whether the key must be given.
    required: bool
    #: The `#:` lines above the field.
    comment: str


def describe(model: type[BaseModel], prefix: str = "") -> list[Option]:
    """List the options of a model and of the models inside it, with the `#:` comments of their source."""
    return list(_options(model, prefix, ()))


def _options(model: type[BaseModel], prefix: str, outer: tuple[type, ...]) -> Iterator[Option]:
    comments = comments_of(model)
    for field_name, info in model.model_fields.items():
        name = prefix + (info.alias or field_name)
        inner = list(models_in(info.annotation, ""))
        if not any(mark == "" for mark, _ in inner):
            yield Option(name, _type(info), _default(info), info.is_required(), comments.get(field_name, ""))
        for mark, child in inner:
            if child not in (*outer, model):
                yield from _options(child, f"{name}{mark}.", (*outer, model))


def models_in(annotation: Any, mark: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Give the models inside an annotation, each with how it is reached: "", `[]` or `.*`."""
    origin = get_origin(annotation)
    if inspect.isclass(annotation) and not origin and issubclass(annotation, BaseModel):
        yield mark, annotation
    elif origin is dict:
        yield from models_in(get_args(annotation)[1], f"{mark}.*")
    elif origin in (list, tuple, set, frozenset):
        yield from models_in(get_args(annotation)[0], f"{mark}[]")
    elif origin is Annotated:
        yield from models_in(get_args(annotation)[0], mark)
    elif origin in (Union, UnionType):
        for member in get_args(annotation):
            yield from models_in(member, mark)


def _type(info: FieldInfo) -> str:
    written = [mark.text for mark in info.metadata if isinstance(mark, Written)]
    return written[0] if written else type_text(info.annotation)


def type_text(annotation: Any) -> str:
    """Write a type as an admin reads it: `list of text`, `number`, `a | b`."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        written = [mark.text for mark in args[1:] if isinstance(mark, Written)]
        return written[0] if written else type_text(args[0])
    if origin is Literal:
        return " | ".join(map(str, args))
    if origin in (Union, UnionType):
        return " | ".join(dict.fromkeys(type_text(member) for member in args if member is not NoneType))
    if origin is dict:
        return f"mapping of {type_text(args[0])} to {type_text(args[1])}"
    if origin in (list, tuple, set, frozenset):
        return f"list of {type_text(args[0])}"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "mapping"
    return _WORDS.get(annotation, "value")


def _default(info: FieldInfo) -> str | None:
    if info.is_required() or (info.default_factory and info.default_factory not in (list, dict, tuple)):
        return None
    default = info.get_default(call_default_factory=True, validated_data={})
    kind: Any = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
    value = TypeAdapter[Any](kind).dump_python(default, mode="json", fallback=str)
    return as_yaml(value)


def as_yaml(value: Any) -> str:
    """Write a value on one line, as it stands in YAML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{as_yaml(key)}: {as_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(as_yaml, value)) + "]"
    if value is None:
        return "null"
    text = str(value)
    plain = not isinstance(value, str) or re.fullmatch(r"[\w./][\w./ -]*", text)
    return text if plain else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def comments_of(model: type[BaseModel]) -> dict[str, str]:
    """Give field -> the `#:` lines above it, those of the model's bases included."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if issubclass(base, BaseModel) and base is not BaseModel:
            found |= _comments(base)
    return found


def _comments(model: type[BaseModel]) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(model))
    except (OSError, TypeError):
        return {}
    lines = source.splitlines()
    body = next((node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef)), [])
    return {
        node.target.id: _above(lines, node.lineno - 1)
        for node in body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def _above(lines: list[str], end: int) -> str:
    start = end
    while start and lines[start - 1].lstrip().startswith("#:"):
        start -= 1
    return " ".join(line.lstrip()[2:].strip() for line in lines[start:end])
