"""The forms of a program: made here, or imported by the workers; under a name; with a saved state."""

import importlib.util
import tempfile
from pathlib import Path

import dspy
from librarian import Librarian, MakeCard, count

import dspool
from dspool.testing.offline_lm import offline_lm

TEXT = "# Slots\n\nA slot runs one call. A worker has a slot, or several slots."


def show_forms(pool: dspool.Pool, text: str) -> None:
    """Each way to say what is to run."""
    pool.run("text -> title", {"text": text})  # a signature string: dspy.Predict over it
    pool.run(MakeCard, {"text": text})  # a signature class: the same
    pool.run(Librarian(most=2), {"text": text})  # a module, with its demos and settings
    pool.run(count, {"text": text})  # a function; its result comes back as plain data
    pool.run("librarian:count", {"text": text})  # an import path: imported by the worker
    pool.run("librarian:librarian", {"text": text})  # the same; a module that the file has made

    pool.create_program("card", MakeCard)  # a name for it
    pool.run("card", {"text": text})


def show_a_state(pool: dspool.Pool, folder: Path) -> None:
    """A program by its import path, with the state that an optimizer has found."""
    trained = Librarian()
    trained.make_card.demos = [dspy.Example(text="# Pools\n\n...", title="Pools", keywords=["pool"])]
    trained.save(folder / "librarian.json")

    definition = {
        "program_type": "program",
        "program": "librarian:Librarian",
        "arguments": {"most": 2},
        "state": str(folder / "librarian.json"),
    }
    pool.create_program("trained", definition)
    print("trained:", pool.run("trained", {"text": TEXT}).keywords)


def load_file(path: Path) -> type[dspy.Module]:
    """A class from a file that nobody can import by a name: it goes to the workers by value."""
    spec = importlib.util.spec_from_file_location("from_a_file", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: type[dspy.Module] = module.Librarian
    return found


with dspool.Pool(workers=2, lm=offline_lm()) as pool, tempfile.TemporaryDirectory() as folder:
    show_forms(pool, TEXT)
    print("words:", pool.run("librarian:count", {"text": TEXT}))
    print("names:", pool.list_programs())
    show_a_state(pool, Path(folder))

    path = Path(folder) / "draft.py"
    path.write_text(Path(__file__).with_name("librarian.py").read_text(encoding="utf-8"), encoding="utf-8")
    print("from a file:", pool.run(load_file(path)(most=1), {"text": TEXT}).title)
    try:
        pool.run("librarian:Libarian", {"text": TEXT})
    except dspool.ProgramError as error:
        print(error)
