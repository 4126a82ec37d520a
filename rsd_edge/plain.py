"""Specs as plain data, for JSON, YAML and the metadata of checkpoints, and back."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar

from rsd_edge.errors import ModelError
from rsd_edge.specs import EDGE_FAMILY, ModelSpec, architecture_of

SpecT = TypeVar("SpecT")


def to_dict(spec: Any) -> dict[str, Any]:
    """A JSON-ready dictionary of a spec dataclass (enums become their values)."""
    return typing.cast("dict[str, Any]", _plain(dataclasses.asdict(spec)))


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def from_dict(cls: type[SpecT], data: Mapping[str, Any], where: str = "", base: SpecT | None = None) -> SpecT:
    """Rebuild a spec dataclass from `to_dict` output or a configuration file.

    Missing keys take their values in `base`, or their defaults; a part takes those of the part's own default, so that
    two parts of one class may differ in what they leave out. Raises ModelError that names an unknown key, a missing
    required key or a value of the wrong type, with its dotted path.
    """
    hints = typing.get_type_hints(cls)
    if cls is ModelSpec:
        family = str(data.get("family", EDGE_FAMILY))
        hints["architecture"] = architecture_of(family)
        data = {**data, "architecture": data.get("architecture", {})}
    defaults = {f.name: _default(f, base) for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in defaults:
            raise ModelError(f"unknown key '{where}{key}'; known keys: {', '.join(defaults)}")
    values = {key: _coerce(hints[key], item, f"{where}{key}", defaults[key]) for key, item in data.items()}
    if base is not None:
        values = {**defaults, **values}
    try:
        return cls(**values)
    except TypeError as error:
        raise ModelError(f"{where or cls.__name__}: {error}") from error


def _default(spec_field: dataclasses.Field[Any], base: Any) -> Any:
    if base is not None:
        return getattr(base, spec_field.name)
    if spec_field.default_factory is not dataclasses.MISSING:
        return spec_field.default_factory()
    return spec_field.default


def _coerce(hint: Any, value: Any, path: str, default: Any = None) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ModelError(f"'{path}' must be a mapping, not {type(value).__name__}")
        base = default if type(default) is hint else None
        return from_dict(typing.cast("type[Any]", hint), value, f"{path}.", base)
    origin = typing.get_origin(hint)
    if origin is tuple:
        return _coerce_tuple(typing.get_args(hint), value, path)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ModelError(f"'{path}' must be a mapping, not {type(value).__name__}")
        return {str(key): _coerce(typing.get_args(hint)[1], item, f"{path}.{key}") for key, item in value.items()}
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _coerce(typing.get_args(hint)[0], value, path)
    if isinstance(hint, type) and issubclass(hint, Enum):
        try:
            return hint(value)
        except ValueError:
            raise ModelError(f"'{path}' is '{value}'; it must be one of {', '.join(e.value for e in hint)}") from None
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise ModelError(f"'{path}' must be of type {hint.__name__}, not {type(value).__name__}")
    return value


def _coerce_tuple(args: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ModelError(f"'{path}' must be a list, not {type(value).__name__}")
    if len(args) == 2 and args[1] is Ellipsis:
        args = (args[0],) * len(value)
    if len(value) != len(args):
        raise ModelError(f"'{path}' needs {len(args)} values, not {len(value)}")
    return tuple(_coerce(arg, item, f"{path}[{i}]") for i, (arg, item) in enumerate(zip(args, value, strict=True)))
