"""Who a definition is: a digest that equal definitions share and different ones don't.

cloudpickle's bytes can't serve: they differ from process to process (hash order of sets, random class ids, interned
strings). So the object graph is walked and written to a hash in one canonical form:

* plain data by type and value; dicts in their order, which a program can see; sets by their members' forms, sorted;
* what a worker can import, by its path ("module:qualname"); any other function or class by what it is made of: code,
  defaults, closure, the globals it names; bases, attributes, and for pydantic models and signatures their fields;
* a DSPy module by its state (dspy leaves history and callbacks out of it) without its random `stage`;
* an LM by its spec's digest, so that programs that differ in a key alone are two;
* any other object by the parts its own pickle would consist of.

A mutable object that is met again is written as the number of its first meeting: cycles end, and sharing is part of
the form. Where a part can't be walked the walk raises, and the caller gives the object an id that nobody shares.

Knows nothing of pools; looks dspy up in sys.modules, never imports it.
"""

from __future__ import annotations

import copyreg
import dis
import enum
import functools
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any

import cloudpickle

ATOMS = frozenset({type(None), bool, int, float, complex, type(Ellipsis), type(NotImplemented)})
_GENERIC = (types.GenericAlias, types.UnionType)
_FUNCTION_LIKE = (types.FunctionType, classmethod, staticmethod, property)
_CODE = (
    "co_name co_qualname co_argcount co_posonlyargcount co_kwonlyargcount co_flags co_code co_names co_varnames"
    " co_freevars co_cellvars co_exceptiontable co_consts"
).split()
# What a class's namespace holds beside its definition: where it stood, caches, and what pydantic builds from the rest.
_CLASS_NOISE = frozenset(
    "__dict__ __weakref__ __module__ __qualname__ __firstlineno__ __static_attributes__ __abstractmethods__ _abc_impl"
    " __signature__ __class_vars__ __annotate__ __annotate_func__ __annotations_cache__ __subclasshook__".split()
)
LM_RECORDS = frozenset({"history", "callbacks", "_warned_zero_temp_rollout"})
"""What an LM object gathers or calls in this process; none of it is shipped."""
_PARALLEL = (
    *("num_threads", "max_errors", "access_examples", "return_failed_examples", "provide_traceback"),
    *("disable_progress_bar", "timeout", "straggler_limit"),
)
"""The arguments of dspy.Parallel, each of which is an attribute of the same name."""
_RANDOM_STAGE = re.compile("[0-9a-f]{16}")
_GLOBAL_ACCESS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "DELETE_GLOBAL"})
_HEAP_TYPE = 1 << 9
_importable: dict[str, tuple[types.ModuleType, bool]] = {}


AttributesOf = Callable[[Any], Mapping[str, Any]]
"""What is to be taken for an object's attributes, in place of what it holds."""


def digest(
    value: Any,
    lm_digest: Callable[[Any], str | None] = lambda lm: None,
    attributes_of: AttributesOf = lambda thing: {},
) -> str:
    """32 hex digits that equal definitions share, in this process and in any other.

    Args:
        value: the definition.
        lm_digest: the digest of an LM met on the way; None where the object is no LM or has no stable digest.
        attributes_of: what an object's attributes are taken to be.

    Raises:
        Exception: whatever a part of it raises that can't be taken apart (a lock, an open socket).
    """
    walk = _Walk(lm_digest, attributes_of)
    walk.visit(value)
    return blake2b(walk.form, digest_size=16).hexdigest()


def import_path(thing: Any) -> str | None:
    """ "module:qualname" of a class or function that a worker gets by importing it; None where it goes by value."""
    module_name, qualname = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not isinstance(module_name, str) or not isinstance(qualname, str) or "<" in qualname:
        return None
    found: Any = sys.modules.get(module_name)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if found is not thing or not importable(module_name) or _wanted_by_value(module_name):
        return None
    return f"{module_name}:{qualname}"


def importable(module_name: str) -> bool:
    """Whether a worker, with this process's sys.path, imports the same module under this name.

    Not so are `__main__`, modules made at run time, and files loaded by location under a name of their own.
    """
    module = sys.modules.get(module_name)
    if module is None or module_name in ("__main__", "__mp_main__"):
        return False
    known = _importable.get(module_name)
    if known is None or known[0] is not module:
        known = _importable[module_name] = (module, _found_on_path(module_name, module))
    return known[1]


def _found_on_path(name: str, module: types.ModuleType) -> bool:
    parent = name.rpartition(".")[0]
    if name.partition(".")[0] in sys.stdlib_module_names:
        return True
    if parent and not importable(parent):
        return False
    file = getattr(module, "__file__", None)
    if file is None and not hasattr(module, "__path__") and name not in sys.builtin_module_names:
        return bool(parent)  # made at run time: by its package, which a worker imports too, or by nobody we can ask
    if file is not None and not file.endswith((".py", ".pyc")):
        return True  # built from C: there is no source to send
    if (real := getattr(getattr(module, "__spec__", None), "name", name)) != name:
        return importable(real)  # a second name of another module, given by the package it is in
    search = getattr(sys.modules[parent], "__path__", ()) if parent else None
    for finder in list(sys.meta_path):
        find = getattr(finder, "find_spec", None)
        spec = find(name, search) if find is not None else None
        if spec is not None:
            return spec.origin is None or file is None or os.path.realpath(spec.origin) == os.path.realpath(file)
    return False


def _wanted_by_value(module_name: str) -> bool:
    """Whether the user registered the module, or a package it is in, with cloudpickle to go by value."""
    registered = cloudpickle.list_registry_pickle_by_value()
    return bool(registered) and any(module_name == name or module_name.startswith(name + ".") for name in registered)


def loaded_dspy(*names: str) -> tuple[type, ...]:
    """Classes of dspy by name, as many as there are: none while it isn't loaded, for then no object is one of them."""
    dspy = sys.modules.get("dspy")
    return tuple(filter(None, (getattr(dspy, name, None) for name in names)))


class _Walk:
    """One walk over one definition. Each part is written as a tag, a length where it varies, and its content."""

    def __init__(
        self,
        lm_digest: Callable[[Any], str | None],
        attributes_of: AttributesOf,
        memo: Mapping[int, int] = types.MappingProxyType({}),
    ) -> None:
        self.form = bytearray()
        self._lm_digest = lm_digest
        self._attributes_of = attributes_of
        self._memo: dict[int, int] = dict(memo)
        self._kept: list[Any] = []  # ids in the memo must not be used again by another object during the walk

    def _write(self, tag: str, content: bytes) -> None:
        self.form += b"%s %d:%s" % (tag.encode(), len(content), content)

    def _text(self, tag: str, text: str) -> None:
        self._write(tag, text.encode("utf-8", "surrogatepass"))

    def _parts(self, tag: str, parts: Iterable[Any]) -> None:
        items = list(parts)
        self._text(tag, str(len(items)))
        self._kept.append(items)
        for item in items:
            self.visit(item)

    def _pairs(self, tag: str, pairs: Iterable[tuple[Any, Any]]) -> None:
        self._parts(tag, (part for pair in pairs for part in pair))

    def visit(self, value: Any) -> None:
        """Write one value of any kind."""
        kind = type(value)
        if kind is str:
            self._text("str", value)
        elif kind in ATOMS:
            self._text(kind.__name__, repr(value))
        elif kind is bytes:
            self._write("bytes", value)
        elif kind is tuple:
            self._parts("tuple", value)
        elif kind is types.CodeType:
            self._parts("code", (getattr(value, name) for name in _CODE))
        elif (kind.__module__ == "typing" or kind in _GENERIC) and typing.get_origin(value) is not None:
            self._parts("generic", (typing.get_origin(value), typing.get_args(value)))
        elif isinstance(value, type | types.FunctionType | types.BuiltinFunctionType) and (path := import_path(value)):
            self._text("import", path)
        elif id(value) in self._memo:
            self._text("again", str(self._memo[id(value)]))
        else:
            self._memo[id(value)] = len(self._memo)
            self._kept.append(value)
            self._compound(kind, value)

    def _compound(self, kind: type, value: Any) -> None:
        if kind is list:
            self._parts("list", value)
        elif kind is dict or kind is types.MappingProxyType:
            self._pairs("dict", value.items())
        elif isinstance(value, set | frozenset):
            self._set(kind, value)
        elif isinstance(value, type):
            self._class(value)
        elif kind is types.FunctionType:
            self._function(value)
        elif kind is property:
            self._parts("property", (value.fget, value.fset, value.fdel, value.__doc__))
        elif kind is classmethod or kind is staticmethod:
            self._parts(kind.__name__, (value.__func__,))
        elif isinstance(value, types.ModuleType) and importable(value.__name__):
            self._text("module", value.__name__)
        elif kind is typing.TypeVar:
            self._parts("typevar", (value.__name__, value.__bound__, value.__constraints__, value.__covariant__))
        elif (lm := self._lm_digest(value)) is not None:
            self._text("lm", lm)
        else:
            self._object(kind, value)

    def _set(self, kind: type, members: Any) -> None:
        """Each member is walked by itself from the same start, so that their order does not matter."""
        forms = []
        for member in members:
            walk = _Walk(self._lm_digest, self._attributes_of, self._memo)
            walk.visit(member)
            forms.append(bytes(walk.form))
        self._parts("set", (kind, *sorted(forms), getattr(members, "__dict__", None)))

    def _function(self, function: types.FunctionType) -> None:
        code, namespace = function.__code__, function.__globals__
        self._parts(
            "function",
            (
                function.__module__,
                function.__qualname__,
                code,
                function.__doc__,
                function.__defaults__,
                function.__kwdefaults__,
                function.__annotations__,
                vars(function),
            ),
        )
        self._parts("closure", map(_cell, function.__closure__ or ()))
        self._pairs("globals", ((name, namespace[name]) for name in dict.fromkeys(names_of(code)) if name in namespace))

    def _class(self, cls: type) -> None:
        if not cls.__flags__ & _HEAP_TYPE:  # part of the interpreter, though not by a name in a module
            self._text("type", f"{cls.__module__}:{cls.__qualname__}")
            return
        self._parts("class", (cls.__module__, cls.__qualname__, type(cls), cls.__bases__))
        members: Mapping[str, Any] = cls.__members__ if isinstance(cls, enum.EnumMeta) else {}
        self._pairs("members", ((name, member._value_) for name, member in members.items()))
        for name, value in class_parts(cls):
            if not members or isinstance(value, _FUNCTION_LIKE) or not (name in members or name.startswith("_")):
                self._parts("attribute", (name, value))
        for name, field in vars(cls).get("__pydantic_fields__", {}).items():
            slots = ((slot, getattr(field, slot, None)) for slot in type(field).__slots__ if not slot.startswith("_"))
            self._pairs(f"field {name}", (pair for pair in slots if pair[1] is not None or pair[0] == "default"))
        decorators = vars(cls).get("__pydantic_decorators__")
        for group in type(decorators).__slots__ if hasattr(type(decorators), "__slots__") and decorators else ():
            self._pairs(group, ((name, one.info) for name, one in getattr(decorators, group).items()))

    def _object(self, kind: type, value: Any) -> None:
        """By what its pickle would consist of: how it is made, its state, its items."""
        reducer = cloudpickle.Pickler.dispatch_table.get(kind) or copyreg.dispatch_table.get(kind)
        reduced: Any = parallel_reduced(value)
        if reduced is None:
            reduced = reducer(value) if reducer is not None else value.__reduce_ex__(4)
        if isinstance(reduced, str):
            self._parts("global", (getattr(value, "__module__", None), reduced, getattr(value, "__wrapped__", None)))
            return
        make, arguments, state, items, pairs = [*reduced, None, None, None][:5]
        if isinstance(state, dict):
            state = _steady(value, changed(state, self._attributes_of(value)))
        self._parts("object", (make, arguments, state, list(items or ())))
        self._pairs("items", pairs or ())


def class_parts(cls: type) -> Iterator[tuple[str, Any]]:
    """What a class's body defines, by name; neither what Python and pydantic add, nor its slots."""
    for name, value in list(vars(cls).items()):
        if name in _CLASS_NOISE or name.startswith("__pydantic"):
            continue
        if not isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType):
            yield name, value


def parallel_reduced(value: Any) -> tuple[Any, ...] | None:
    """How a dspy.Parallel is made again: by its arguments, without a run's lock and event; None for anything else."""
    kind: Any = type(value)
    if kind not in loaded_dspy("Parallel"):
        return None
    return functools.partial(kind, **{name: getattr(value, name) for name in _PARALLEL}), ()


def changed(state: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A state with others of the attributes that are in it."""
    return state | {name: value for name, value in changes.items() if name in state} if changes else state


def _steady(value: Any, state: dict[str, Any]) -> dict[str, Any]:
    """An object's state without what DSPy makes anew or adds to in each process."""
    if isinstance(value, loaded_dspy("BaseLM")):
        return {name: part for name, part in state.items() if name not in LM_RECORDS}
    if isinstance(value, loaded_dspy("Predict", "Retrieve")) and _RANDOM_STAGE.fullmatch(str(state.get("stage"))):
        return {name: part for name, part in state.items() if name != "stage"}
    return state


def _cell(cell: types.CellType) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # not filled yet
        return ()


def names_of(code: types.CodeType) -> Iterator[str]:
    """The globals that a function's code and the functions in it name, each once for every place in it."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in _GLOBAL_ACCESS:
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_of(constant)
