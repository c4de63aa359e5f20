"""The program store: what a pool may be asked to run, who it is, and what a worker is sent of it.

    a registered name              wins over the other readings of a string
    "question -> answer"           dspy.Predict over the signature
    "package.module:attribute"     imported by the worker, from the manager's sys.path
    {"signature": {...}, ...}      a definition, as the original bridge's create_program takes it
    a dspy.Module                  pickled; its predictors' LMs go beside it, as specs
    a dspy.Signature class         dspy.Predict over it
    any other callable             pickled; called with the inputs as keywords

Rules:
    1. Equal definitions are one program: a DSPy program's id is made from its content (identity.py). A callable is
       itself: its id is a number of this store's, for two callables can't be told to be equal.
    2. A module is looked at once; then a Watch says before every call whether it is still what it was. What the Watch
       can't see needs `refresh`.
    3. Objects are remembered weakly, callables strongly, and the least recently used are forgotten beyond MAX_PROGRAMS
       programs or MAX_BYTES bytes.
    4. What is known already is found without a lock; everything else happens under one.
    5. A name that is given to another program, or deleted, leaves nothing behind. Calls under way hold what they need.

dspy is looked up in sys.modules and never imported: a DSPy object can only exist where it is loaded. Knows no workers.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import threading
import types
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, NamedTuple, NoReturn

from dspool.errors import EncodeError, ProgramNotFound
from dspool.options import PoolOptions
from dspool.pool import defined
from dspool.pool.attributes import Attributes
from dspool.pool.forms import callable_name, module_label, output_fields, unreadable
from dspool.pool.identity import AttributesOf, digest, loaded_dspy
from dspool.pool.lm_specs import lm_spec, stable_digest
from dspool.pool.names import Candidate, Names, Registered
from dspool.pool.pickling import is_lm, pickled
from dspool.pool.program import Program as Program
from dspool.pool.unsendable import A_POOL_STAYS, WHAT_TO_DO, unsendable
from dspool.pool.watch import Watch
from dspool.protocol.definitions import IMPORT_PATH, DefinitionError
from dspool.protocol.frames import HEADER_BYTES, MAX_LENGTH
from dspool.protocol.messages import CreateArgs, ImportedProgram, LMSpec, PickledProgram, SignatureProgram
from dspool.protocol.modules import modules_in
from dspool.protocol.requests import encode_request
from dspool.signals import let_through

MAX_PROGRAMS = 1024
"""Programs whose pickles a store keeps."""
MAX_BYTES = 256 * 2**20
"""Bytes of pickles a store keeps; the newest is kept whatever its size."""
MAX_NAME_CHARS = 256

_KEYS = frozenset({str, types.FunctionType, types.BuiltinFunctionType, types.MethodType})
"""Types whose equality is identity or text. Methods are made anew at each access, and are equal."""
_ATTEMPTS = 10
_FORMS = (
    "a dspy.Module, a dspy.Signature, a signature string, a definition, a registered name, "
    '"package.module:attribute", or a callable'
)


class _Remembered(NamedTuple):
    ref: Callable[[], Any]
    watch: Watch
    program: Program


class ProgramStore:
    """The programs of one pool. Any thread may use it.

    Args:
        options: the pool's; `name` goes into errors, `max_frame_bytes` bounds a program's size.
        on_lm: is told of each LM that a program brings along.
    """

    def __init__(self, options: PoolOptions, on_lm: Callable[[LMSpec], None] = lambda spec: None) -> None:
        self._pool = options.name
        self._on_lm = on_lm
        self._max_bytes = options.max_frame_bytes
        self._lock = threading.RLock()
        self._names = Names(options.name)
        self._programs: dict[str, Program] = {}
        self._keyed: dict[Any, Program] = {}
        self._objects: dict[int, _Remembered] = {}
        self._numbers = itertools.count(1)

    def resolve(self, program: Any) -> Program:
        """The program that any of the forms above stands for.

        Raises:
            EncodeError: it is none of them, or can't be sent; the text names the part that can't be pickled.
            ProgramNotFound: a string that is no registered name, no signature and no import path.
        """
        if type(program) in _KEYS:
            known = self._keyed.get(program)
            if known is not None:
                known.touched = True
                return known
        else:
            remembered = self._objects.get(id(program))
            if remembered is not None and remembered.ref() is program and remembered.watch.unchanged():
                remembered.program.touched = True
                return remembered.program
        with self._lock:
            return self._learn(program)

    def prepare(
        self, program_id: str, definition: Any, *, replace: bool = False, allow_pickle: bool = False
    ) -> Candidate:
        """Look at a program, as it is now, for a name that resolve() will take. Nothing is registered yet.

        Args:
            program_id: the name, 1 to 256 characters.
            definition, replace, allow_pickle: as Pool.create_program().

        Raises:
            ProgramExists: the name is taken.
            PoolError: there are too many names.
            EncodeError, ProgramNotFound, OptionsError: as resolve().
        """
        if not isinstance(program_id, str) or not 0 < len(program_id) <= MAX_NAME_CHARS:
            self._refuse(f"a program's name is a string of 1 to {MAX_NAME_CHARS} characters, not {program_id!r:.80}")
        with self._lock:
            self._names.check(program_id, replace=replace)
            return self._candidate(program_id, definition, allow_pickle)

    def register(self, candidate: Candidate, *, replace: bool = False) -> Program:
        """Give a program its name, in one step: a call finds the old one or the new one.

        Raises:
            ProgramExists, PoolError: as prepare(); another thread was faster.
        """
        with self._lock:
            self._names.check(candidate.name, replace=replace)
            return self._register(candidate, datetime.now(UTC))

    def discard(self, candidate: Candidate) -> None:
        """Forget a candidate that is not registered after all."""
        with self._lock:
            if not self._names.has_program(candidate.program.program_id):
                self._forget(candidate.program.program_id)

    def knows(self, program_id: str) -> bool:
        """Whether it is the id of a program that this pool was given, and hasn't forgotten for others."""
        return program_id in self._programs

    def names(self) -> list[str]:
        """The registered names, oldest first."""
        return list(self._names)

    def info(self, program_id: str) -> dict[str, Any]:
        """What is known of a registered program, as plain data; all but quarantine and workers of Pool.program_info().

        Raises:
            ProgramNotFound: there is none of that name.
        """
        registered = self._names.get(program_id)
        if registered is None:
            self._not_found(program_id)
        return registered.info()

    def delete(self, program_id: str) -> Program:
        """Forget a registered name. Calls under way are not concerned.

        Raises:
            ProgramNotFound: there is none of that name.
        """
        with self._lock:
            found = self._names.pop(program_id)
            if found is None:
                self._not_found(program_id)
            self._keyed.pop(program_id, None)
            program, orphan = found
            self._forget(orphan)
            return program

    def refresh(self, program: Any) -> None:
        """Look at a program again at its next use, or, for a registered name, at its definition now."""
        with self._lock:
            if type(program) not in _KEYS:
                self._objects.pop(id(program), None)
                return
            self._keyed.pop(program, None)
            registered = self._names.get(program) if isinstance(program, str) else None
            if registered is not None:
                _, definition, old, allow_pickle = registered.candidate
                self.refresh(definition)
                again = self._candidate(program, definition, allow_pickle)
                again.program.runs = old.runs
                self._register(again, registered.created_at)

    @contextlib.contextmanager
    def changing(self, program: Any) -> Iterator[None]:
        """For calls, what is changed in here changes at once: who finds some of it changed waits for the rest."""
        with self._lock:
            try:
                yield
            finally:
                self.refresh(program)

    # Under the lock.

    def _candidate(self, name: str, definition: Any, allow_pickle: bool) -> Candidate:
        if isinstance(definition, Mapping):
            found = self._definition(definition, allow_pickle=allow_pickle)
        else:
            found = self.resolve(definition)
        return Candidate(name, definition, found.named(name), allow_pickle)

    def _register(self, candidate: Candidate, created_at: datetime) -> Program:
        orphan = self._names.put(Registered(candidate, created_at))
        self._keyed[candidate.name] = candidate.program
        self._forget(orphan)
        return candidate.program

    def _forget(self, program_id: str | None) -> None:
        """Let go of a program that no name stands for. Who runs it all the same has it looked at again."""
        program = self._programs.pop(program_id, None) if program_id is not None else None
        if program is not None:
            self._forget_keys(program)

    def _learn(self, program: Any) -> Program:
        if isinstance(program, str):
            return self._text(program)
        if isinstance(program, loaded_dspy("Module")):
            return self._module(program, program)
        if isinstance(program, type) and issubclass(program, loaded_dspy("Signature")):
            return self._signature_class(program)
        if isinstance(program, type) and issubclass(program, loaded_dspy("Module")):
            self._refuse(
                f"{program.__qualname__} is a class of DSPy modules; pass an instance: {program.__qualname__}(...)"
            )
        if isinstance(program, Mapping):
            return self._definition(program)
        if not callable(program) or is_lm(program):
            hint = "; pass an LM as lm=" if is_lm(program) else ""
            self._refuse(f"a program is {_FORMS}; this is a {type(program).__qualname__}{hint}")
        return self._callable(program)

    def _text(self, text: str) -> Program:
        registered = self._names.get(text)
        if registered is not None:
            program = registered.candidate.program
        elif "->" in text:
            if reason := unreadable(text):
                self._refuse(f"the signature {text!r:.200} can't be read: {reason}")
            program_id = f"Predict-{blake2b(text.strip().encode(), digest_size=16).hexdigest()}"
            program = self._kept(Program(program_id, f"{text.strip():.100}", SignatureProgram(text.strip()), True))
        elif IMPORT_PATH.fullmatch(text):
            if text.startswith("__main__:"):
                self._refuse(f"{text!r} is in the script itself, which a worker does not import; pass the object")
            program = self._kept(Program(f"import:{text}", text, ImportedProgram(text), None, unproven=True))
        else:
            self._not_found(text)
        self._keyed[text] = program
        return program

    def _definition(self, definition: Mapping[str, Any], *, allow_pickle: bool = False) -> Program:
        try:
            found = defined.read(definition, allow_pickle=allow_pickle)
        except (DefinitionError, EncodeError) as error:
            self._refuse(str(error))
        if found.spec.lm is not None:
            self._on_lm(found.spec.lm)
        program_id = f"{_prefix(found.name)}-{found.digest}"
        return self._kept(Program(program_id, f"{found.name:.100}", found.spec, True, unproven=found.unproven))

    def _signature_class(self, signature: Any) -> Program:
        if not signature.output_fields:
            self._refuse(f"the signature {signature.__qualname__} has no output fields")
        (predict,) = loaded_dspy("Predict")
        return self._module(signature, predict(signature))

    def _module(self, given: Any, module: Any) -> Program:
        """A DSPy module's program; `given` is what it is remembered by.

        Another thread may change it meanwhile. What is sent is what its modules held at one moment, and it is kept only
        if that is what is watched from now on.
        """
        for _ in range(_ATTEMPTS):
            modules = modules_in(module)
            attributes = Attributes(modules)
            pinned = [part.lm for part in modules if is_lm(getattr(part, "lm", None))]
            watch = Watch([*modules, *pinned])
            program = self._looked_at(module, modules, attributes)
            if attributes.are_still() and watch.unchanged() and _same(modules_in(module), modules):
                program = self._kept(program)
                self._remember(given, watch, program)
                return program
        label = module_label(module, modules_in(module))
        raise EncodeError(f"pool {self._pool!r}: the program {label} kept changing while it was pickled")

    def _looked_at(self, module: Any, modules: list[Any], attributes: Attributes) -> Program:
        label = module_label(module, modules)
        try:
            predictors = [(name, part) for name, part in module.named_predictors() if is_lm(attributes.lm(part))]
            lms = {name: lm_spec(attributes.lm(part)) for name, part in predictors}
            for lm in lms.values():
                self._on_lm(lm)
        except RecursionError:
            self._refuse(
                f"the program {label} can't be sent: DSPy's named_predictors() goes through its modules without end, "
                "since one of them holds another that it is a part of. Let only one of the two hold the other"
            )
        except Exception as error:
            let_through(error)
            raise EncodeError(f"pool {self._pool!r}: the program {label} can't be sent: {error!s:.500}") from error
        try:
            key = digest(module, stable_digest, attributes.of)
        except Exception as error:  # some part can't be told from its like: the id is shared with nobody
            let_through(error)
            key = f"unique#{next(self._numbers)}"
        program_id = f"{_prefix(type(module).__name__)}-{key}"
        known = self._programs.get(program_id)
        if known is not None:
            return known
        spec = self._pickle(module, label, lms, {id(vars(part)) for _, part in predictors}, attributes.of)
        return Program(program_id, label, spec, True, output_fields(modules))

    def _callable(self, function: Any) -> Program:
        name = callable_name(function)
        spec = self._pickle(function, name, {}, ())
        program = self._kept(Program(f"callable:{name}#{next(self._numbers)}", name, spec, False, {}))
        if type(function) in _KEYS:
            self._keyed[function] = program
        else:
            self._remember(function, Watch(()), program, strongly=True)
        return program

    def _pickle(
        self,
        thing: Any,
        label: str,
        lms: dict[str, Any],
        without_lm: Collection[int],
        attributes_of: AttributesOf = lambda thing: {},
    ) -> PickledProgram:
        try:
            data = pickled(thing, without_lm, attributes_of)
        except Exception as error:
            let_through(error)
            faults = unsendable(thing, "self" if isinstance(thing, loaded_dspy("Module")) else label, without_lm)
            advice = "" if A_POOL_STAYS in faults else f". {WHAT_TO_DO}"
            self._refuse(f"the program {label} can't be pickled, because of {faults}{advice}", error)
        return PickledProgram(data, label, lms)

    def _kept(self, program: Program) -> Program:
        """The program, or the one that is here by its id; others are forgotten where there are too many."""
        known = self._programs.get(program.program_id)
        if known is None:
            self._check_size(program)
            known = self._programs[program.program_id] = program
            self._evict()
            program.touched = False
        else:
            known.touched = True
        return known

    def _check_size(self, program: Program) -> None:
        """What no frame carries is refused here: found when it is sent, it would have cost a worker."""
        try:
            frame = encode_request("create_program", CreateArgs(program.program_id, program.spec), MAX_LENGTH)
        except EncodeError as error:
            self._refuse(f"the program {program.label:.100} can't be sent: {error}")
        if len(frame) - HEADER_BYTES > self._max_bytes:
            self._refuse(
                f"the program {program.label:.100} makes a message of {len(frame) - HEADER_BYTES:,} bytes, more than "
                f"max_frame_bytes={self._max_bytes:,}; raise that, or let the program load its data itself"
            )
        program.size_bytes = len(frame) - HEADER_BYTES

    def _evict(self) -> None:
        programs, size = self._programs, sum(program.size_bytes for program in self._programs.values())
        while len(programs) > 1 and (len(programs) > MAX_PROGRAMS or size > MAX_BYTES):
            oldest = next(iter(programs.values()))
            del programs[oldest.program_id]
            if oldest.touched:  # used since: to the end of the line
                oldest.touched = False
                programs[oldest.program_id] = oldest
                continue
            size -= oldest.size_bytes
            self._forget_keys(oldest)

    def _forget_keys(self, program: Program) -> None:
        for key in [key for key, known in self._keyed.items() if known is program]:
            del self._keyed[key]
        for number in [number for number, entry in list(self._objects.items()) if entry.program is program]:
            self._objects.pop(number, None)

    def _remember(self, thing: Any, watch: Watch, program: Program, *, strongly: bool = False) -> None:
        key = id(thing)
        ref: Callable[[], Any] = lambda: thing  # noqa: E731
        if not strongly:
            ref = weakref.ref(thing, lambda _: self._objects.pop(key, None))
        self._objects.pop(key, None)
        self._objects[key] = _Remembered(ref, watch, program)
        while len(self._objects) > 4 * MAX_PROGRAMS:
            self._objects.pop(next(iter(self._objects)), None)

    def _refuse(self, reason: str, cause: Exception | None = None) -> NoReturn:
        raise EncodeError(f"pool {self._pool!r}: {reason}") from cause

    def _not_found(self, text: str) -> NoReturn:
        names = ", ".join(map(repr, itertools.islice(self._names, 10))) or "none"
        raise ProgramNotFound(
            f"pool {self._pool!r} has no program {text!r:.80} (registered: {names}), and it is neither a signature "
            f'("question -> answer") nor an import path ("package.module:attribute")'
        )


def _same(some: list[Any], others: list[Any]) -> bool:
    """Whether they are the very same objects."""
    return list(map(id, some)) == list(map(id, others))


def _prefix(name: str) -> str:
    return re.sub(r"\W+", "_", name)[:40]
