"""The tree of a field's type -> the type that Python, pydantic and DSPy know it by.

A Model becomes a pydantic model, made anew for each definition: worker and manager each make their own from the same
tree, so that no class ever crosses a pipe.

Rules:
    1. One part of a tree that is met twice is one model.
    2. A property whose name Python or pydantic keeps for itself gets another that is free, and its own as alias:
       {"class": ...} is model.class_ and travels as "class".
    3. A default has to fit its own property.

pydantic and dspy are looked up in sys.modules: whoever builds a signature has imported them.
"""

from __future__ import annotations

import keyword
import re
import sys
from typing import Annotated, Any, Literal, Optional, Union, assert_never

import msgspec

from dspool.protocol.field_types import (
    Choice,
    DefinitionError,
    DictOf,
    FieldType,
    Limited,
    ListOf,
    Model,
    OneOf,
    Plain,
    Property,
)

_TYPES: dict[str, Any] = {
    **{kind.__name__: kind for kind in (str, int, float, bool, list, dict)},
    "Any": Any,
    "null": type(None),
}


def annotation(tree: FieldType) -> Any:
    """The type that a tree stands for.

    Raises:
        DefinitionError: pydantic can't make it: a pattern that is no regular expression, a default that doesn't fit.
    """
    try:
        return _Maker().make(tree)
    except refusals() as error:
        raise DefinitionError(f"the type can't be made: {error!s:.300}") from None


def refusals() -> tuple[type[Exception], ...]:
    """What pydantic raises of a type that it can't make."""
    return _pydantic().PydanticUserError, sys.modules["pydantic_core"].SchemaError


def base_and_limits(tree: FieldType) -> tuple[FieldType, dict[str, Any]]:
    """A tree without its outermost limits, and these, which a signature's field takes by themselves."""
    return (tree.base, tree.limits) if isinstance(tree, Limited) else (tree, {})


class _Maker:
    def __init__(self) -> None:
        self._models: dict[int, Any] = {}

    def make(self, tree: FieldType) -> Any:
        match tree:
            case Plain(name="image"):
                return sys.modules["dspy"].Image
            case Plain(name=name):
                return _TYPES[name]
            case Choice(values=values):
                return Literal[values]
            case ListOf(item=item):
                items: Any = self.make(item)
                return list[items]
            case DictOf(key=key, item=item):
                pair: Any = (_TYPES[key], self.make(item))
                return dict[pair]  # type: ignore[misc,type-arg,unused-ignore]
            case OneOf(options=(option, Plain(name="null"))):
                return Optional[self.make(option)]  # noqa: UP045 - DSPy's adapters know it as a typing construct
            case OneOf(options=options):
                return Union[tuple(self.make(option) for option in options)]  # noqa: UP007
            case Limited(base=base, limits=limits):
                return Annotated[self.make(base), _pydantic().Field(**limits)]
            case Model():
                if id(tree) not in self._models:
                    self._models[id(tree)] = self._model(tree)
                return self._models[id(tree)]
            case _:
                assert_never(tree)

    def _model(self, model: Model) -> Any:
        pydantic = _pydantic()
        names: dict[str, str] = {}
        fields: dict[str, Any] = {}
        for each in model.properties:
            name = _free_name(each.name, {*fields, *(other.name for other in model.properties)} - {each.name})
            if name != each.name:
                names[name] = each.name
            fields[name] = self._field(each, names.get(name))
        config = pydantic.ConfigDict(extra=model.extra, protected_namespaces=(), serialize_by_alias=bool(names))
        return pydantic.create_model(
            model.name, __config__=config, __doc__=model.description, __module__=__name__, **fields
        )

    def _field(self, each: Property, alias: str | None) -> tuple[Any, Any]:
        kind, more = self.make(each.type), {"description": each.description, "alias": alias}
        given = {name: value for name, value in more.items() if value is not None}
        pydantic = _pydantic()
        if each.default is not msgspec.UNSET:
            try:
                default = pydantic.TypeAdapter(kind).validate_python(each.default)
            except pydantic.ValidationError:
                raise DefinitionError(f"the default {each.default!r:.40} of {each.name!r} doesn't fit it") from None
            return kind, pydantic.Field(default, **given)
        if each.required:
            return kind, pydantic.Field(**given)
        return Optional[kind], pydantic.Field(None, **given)  # noqa: UP045


def _free_name(name: str, taken: set[str]) -> str:
    """What a property is called in Python: its own name, where nobody keeps that for himself."""
    wanted = re.sub(r"\W", "_", name).lstrip("_") or "field"
    if wanted[0].isdigit():
        wanted = f"field_{wanted}"
    while wanted in taken or keyword.iskeyword(wanted) or hasattr(_pydantic().BaseModel, wanted):
        wanted += "_"
    return wanted


def _pydantic() -> Any:
    return sys.modules["pydantic"]
