"""Read configs: frozen dataclasses from TOML files and dotted overrides, strict about names and types.

Fields may be bool, int, float, str, ``Literal``, ``tuple[T, ...]``, another dataclass, ``X | None``, or a union of
dataclasses. A number may have a range (see ``ranges``). The members of a union differ in a field called ``name``, a
``Literal`` with one value, which is its default::

    @dataclass(frozen=True)
    class Train:
        lr: float = 1e-6
        steps: int = 100

    @dataclass(frozen=True)
    class Config:
        recipe: RLV | Tango = RLV()
        train: Train = Train()

    config = load(Config, "run.toml")
    config = override(config, ["train.lr=1e-5", "--recipe.name", "tango"])

Every error is a ``ConfigError`` which says where the mistake is (file or command line), in which option, and how to mend it.
"""

from __future__ import annotations

import tomllib
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tomli_w

from twofold.ranges import ranges_in

T = TypeVar("T")
Aliases = Mapping[str, str]
"""The name of an option in other libraries (``learning_rate``) -> its name here (``train.lr``), for error messages."""

NO_ALIASES: Aliases = {}
COMMAND_LINE = "command line"


class ConfigError(ValueError):
    """Raised for a config that cannot be used. The message is for the person who wrote it."""


class _Text(str):
    """A value as it was typed on the command line. Its type is not known until its field is."""


@dataclass(frozen=True)
class _Context:
    """What an error message needs: where the values were written, the class of the whole, and other names of its options."""

    where: str
    cls: type
    aliases: Aliases

    def error(self, message: str) -> ConfigError:
        return ConfigError(f"{self.where}: {message}")

    def spelled(self, *keys: str) -> str:
        """Return the options as they are written there."""
        return " or ".join(f"--{key}" if self.where == COMMAND_LINE else key for key in keys)

    def wrong_type(self, key: str, expected: str, value: object) -> ConfigError:
        kind = "str" if isinstance(value, str) else type(value).__name__
        return self.error(f"{self.spelled(key)} must be {expected}, got {value!r} ({kind})")

    def unknown(self, key: str, value: object) -> ConfigError:
        while isinstance(value, Mapping) and value:  # name the option that was meant, not its table
            child, value = next(iter(value.items()))
            key = f"{key}.{child}"
        leaf, known = key.split(".")[-1], options(self.cls)
        ours = self.aliases.get(key) or self.aliases.get(leaf)
        elsewhere = [option for option in known if option.split(".")[-1] == leaf]
        leaves = {option.split(".")[-1]: option for option in known}
        close = get_close_matches(key, known, n=1) or [leaves[x] for x in get_close_matches(leaf, leaves, n=1)]
        if key in known:
            hint = f"it is an option of another {self.spelled(key.rpartition('.')[0])}.name"
        elif ours:
            hint = f"twofold calls it {ours if ours.startswith('--') else self.spelled(ours)}"
        elif elsewhere or close:
            hint = f"did you mean {self.spelled(*(elsewhere or close))}?"
        else:
            hint = f"the options are {', '.join(known)}"
        return self.error(f"unknown option {self.spelled(key)}; {hint}")


def load(cls: type[T], path: str | Path, aliases: Aliases = NO_ALIASES) -> T:
    """Read a TOML file into ``cls``. Raises ConfigError if it cannot be read, is not TOML or does not fit ``cls``."""
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read this config: {error.strerror}") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise ConfigError(f"{path}: not a valid TOML file: {error}") from error
    return from_dict(cls, values, str(path), aliases)


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "config", aliases: Aliases = NO_ALIASES) -> T:
    """Return a ``cls`` from nested plain values; what is left out has its default.

    Raises ConfigError if a value does not fit.
    """
    return _build(cls, values, "", None, _Context(where, cls, aliases))


def override(config: T, settings: Sequence[str], aliases: Aliases = NO_ALIASES, where: str = COMMAND_LINE) -> T:
    """Return a new config with some options changed. If an option is given twice, the last one wins.

    There are three spellings: ``train.lr=1e-6``, ``--train.lr=1e-6`` and ``--train.lr 1e-6`` (two items). Values are TOML
    (``[3, 4]``, ``true``, ``1e-6``). Text needs no quotes, and ``none`` sets an optional field to None. Raises ConfigError
    if something does not fit.
    """
    values: dict[str, Any] = {}
    for key, text in _pairs(settings, where):
        *parents, leaf = key.split(".")
        table = values
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{where}: {parent} is given both as a value and as a table, by {key}")
        table[leaf] = _Text(text)
    return _build(type(config), values, "", config, _Context(where, type(config), aliases))


def to_toml(config: object) -> str:
    """Return a config as TOML, every field in its order, None left out. ``load`` of it returns an equal config."""
    return tomli_w.dumps(_without_none(asdict(config)))  # type: ignore[call-overload]


def flat(config: object) -> dict[str, Any]:
    """Return the value of every option of a config by its dotted name, such as ``train.lr``."""
    return dict(_flat(asdict(config), ""))  # type: ignore[call-overload]


def _flat(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        yield from _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]


def options(cls: type) -> list[str]:
    """Return every dotted option of ``cls`` in order, with the options of all members of a union.

    For the ``Train`` above this is ``["lr", "steps"]``, and for a config that has it ``["train.lr", "train.steps"]``.
    """
    names: list[str] = []
    for field, hint in _fields(cls):
        tables: list[Any] = [member for member in _members(hint) if is_dataclass(member)]
        nested = [name for table in tables for name in options(table)]
        names += [f"{field.name}.{name}" for name in nested] or [field.name]
    return list(dict.fromkeys(names))


def _pairs(settings: Sequence[str], where: str) -> Iterator[tuple[str, str]]:
    words = iter(settings)
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            if not word.startswith("--"):
                raise ConfigError(f"{where}: {word!r} is not an option; write name=value or --name value")
            value = next(words, None)
            if value is None or value.startswith("--"):
                raise ConfigError(f"{where}: {word} needs a value, e.g. {word} true")
            text = value
        yield key.removeprefix("--").replace("-", "_"), text


@cache  # a plan is read in a request, and resolving the annotations was most of that
def _fields(cls: type) -> Sequence[tuple[Field[Any], Any]]:
    hints = get_type_hints(cls, include_extras=True)
    found: list[tuple[Field[Any], Any]] = []
    for field in fields(cls):
        hint = hints[field.name]
        if type(None) in _members(hint) and field.default is not None:
            # TOML has no None, so config.toml would lose a None that replaces another default
            raise TypeError(f"{cls.__name__}.{field.name} is optional, so its default must be None")
        found.append((field, hint))
    return tuple(found)


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _build(cls: type[T], values: Mapping[str, Any], prefix: str, base: T | None, context: _Context) -> T:
    """Return a ``cls`` with ``values``; what they leave out comes from ``base``, or has its default if there is no ``base``."""
    own_fields = _fields(cls)  # type: ignore[arg-type]  # a class is hashable
    names = {field.name for field, _ in own_fields}
    for key in values:
        if key not in names:
            raise context.unknown(prefix + key, values[key])
    chosen: dict[str, Any] = {}
    for field, hint in own_fields:
        key, default = prefix + field.name, _default(field, base)
        if field.name in values:
            chosen[field.name] = _convert(hint, values[field.name], key, default, context)
        elif default is MISSING:
            raise context.error(f"{context.spelled(key)} is required")
        else:
            chosen[field.name] = default
    try:
        return cls(**chosen)
    except ValueError as error:  # a dataclass may check its own values
        about = str(error).partition(" ")[0] in names  # its message begins with the option
        where = context.spelled(prefix) if about else f"{prefix[:-1]}: " if prefix else ""
        raise context.error(f"{where}{error}") from error


def _default(field: Field[Any], base: object) -> Any:
    if base is not None:
        return getattr(base, field.name)
    return field.default if field.default_factory is MISSING else field.default_factory()


def _convert(hint: Any, value: Any, key: str, default: Any, context: _Context) -> Any:
    """Return ``value`` as the type ``hint``. Raises ConfigError, which names ``key``, if it does not fit."""
    members = [member for member in _members(hint) if member is not type(None)]
    optional = len(members) < len(_members(hint))
    if optional and (value is None or (isinstance(value, _Text) and value.lower() == "none")):
        return None
    if all(is_dataclass(member) for member in members):
        return _table(members, value, key, default, context)
    if len(members) > 1:
        raise TypeError(f"{key}: unions are of dataclasses only, not {hint}")
    return _scalar(members[0], value, key, context)


def _table(members: list[Any], value: Any, key: str, default: Any, context: _Context) -> Any:
    """Return one dataclass from a table. In a union ``name`` chooses the member; without a ``name`` it is that of ``default``.

    If the dataclass has a field ``name``, this name alone may stand for the table.
    """
    if isinstance(value, str) and "name" in members[0].__dataclass_fields__:
        value = {"name": value}
    if not isinstance(value, Mapping):
        field = "name" if len(members) > 1 else fields(members[0])[0].name
        raise context.wrong_type(key, f"a table (set its options, such as {key}.{field})", value)
    member = members[0] if len(members) == 1 else type(default)
    if len(members) > 1:
        by_name = {m.__dataclass_fields__["name"].default: m for m in members}
        if "name" in value:
            member = by_name[_scalar(Literal[tuple(by_name)], value["name"], f"{key}.name", context)]
        elif member not in members:
            raise context.error(f"{context.spelled(key)}.name is required, one of {', '.join(by_name)}")
    return _build(member, value, f"{key}.", default if type(default) is member else None, context)


def _scalar(hint: Any, value: Any, key: str, context: _Context) -> Any:
    """Return ``value`` as a bool, int, float, str, ``Literal`` or ``tuple[T, ...]``."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        number = _scalar(args[0], value, key, context)
        for allowed in ranges_in(hint):
            if number not in allowed:
                raise context.error(f"{context.spelled(key)} must be {allowed}, got {number}")
        return number
    if isinstance(value, _Text):
        parsed = _parse(value)
        wants_text = hint is str or (origin is Literal and str(value) in args)
        value = str(value) if wants_text and not isinstance(parsed, str) else parsed
    if origin is Literal:
        if any(type(value) is type(choice) and value == choice for choice in args):
            return value
        raise context.wrong_type(key, f"one of {', '.join(map(repr, args))}", value)
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        if isinstance(value, str) and _is_text(args[0]):
            value = [value]  # one text stands for a list of one
        if isinstance(value, list | tuple):
            return tuple(_convert(args[0], item, f"{key}[{i}]", MISSING, context) for i, item in enumerate(value))
        numbers = {int, float} & {args[0], *get_args(args[0])}
        raise context.wrong_type(key, "a list such as [1, 2]" if numbers else "a list", value)
    if hint not in _SCALARS:
        raise TypeError(f"{key}: configs cannot hold {hint}")
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:  # not isinstance, because True is an int
        raise context.wrong_type(key, _SCALARS[hint], value)
    return value


def _is_text(hint: Any) -> bool:
    return hint is str or (get_origin(hint) is Literal and all(isinstance(choice, str) for choice in get_args(hint)))


_SCALARS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _parse(text: _Text) -> Any:
    """Return ``text`` as a TOML value (``True`` and ``False`` are allowed too), or as it is if it is not one."""
    plain = str(text)
    try:
        return tomllib.loads(f"value = {plain.lower() if plain in ('True', 'False') else plain}")["value"]
    except tomllib.TOMLDecodeError:
        return plain


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list | tuple) else value
