"""A state that `program.save` wrote -> the module that it was of.

DSPy's own load takes a state of another program without a word as long as the predictors' names are the same, sets
whatever attribute the state names, and gives predictors LMs of its own making. So here:
    1. Predictors and fields are compared first, and what differs is named. A field is known by its prefix, which is
       made from its name; the last one's may differ, since optimizers rewrite it.
    2. Nothing but what a state consists of is taken.
    3. An LM gets the model and the settings that say how it answers. A state has no keys, so what says where a request
       goes, with the environment's key in it, must come from the definition's own lm.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from dspool.protocol.definitions import SETTINGS, DefinitionError

_PARTS = frozenset({"traces", "train", "demos", "signature", "lm", "fields"})
_LM_PARTS = SETTINGS | {"model", "model_type", "cache", "num_retries", "use_developer_role"}
_DROPPED_SILENTLY = frozenset({"_dspy_lm_class", "finetuning_model", "launch_kwargs", "train_kwargs", "engine"})
_log = logging.getLogger("dspool.worker")


def load_state(module: Any, state: Mapping[str, Any]) -> None:
    """Give a module its saved state.

    Args:
        module: a DSPy module.
        state: what save() wrote, as plain data.

    Raises:
        DefinitionError: it is of another program; the text names the predictors or fields that differ.
    """
    import dspy

    parts = {name: part for name, part in state.items() if name != "metadata"}
    if isinstance(module, dspy.Predict):
        parts = {"self": parts}
    parameters = dict(module.named_parameters())
    if parts.keys() != parameters.keys():
        raise DefinitionError(
            f"the saved state is of another program: it has the predictors {_listed(parts)}, and this one has "
            f"{_listed(parameters)}"
        )
    for name, parameter in parameters.items():
        _check(name, parts[name], parameter)
    for name, parameter in parameters.items():
        parameter.load_state({**parts[name], "traces": [], "train": [], "lm": None})
        parameter.lm = _lm(name, parts[name].get("lm"))


def _check(name: str, part: Any, predictor: Any) -> None:
    if not isinstance(part, Mapping) or not {"signature", "demos"} <= part.keys():
        raise DefinitionError(f"the saved state of {name!r} is none: it needs a signature and demos")
    if foreign := sorted(part.keys() - _PARTS):
        raise DefinitionError(f"the saved state of {name!r} has {foreign[0]!r:.40}, which no state has")
    demos, signature = part["demos"], part["signature"]
    # In a pickle demos are what they were in the program, dspy.Example.
    if not isinstance(demos, list) or not all(isinstance(demo, Mapping) or hasattr(demo, "toDict") for demo in demos):
        raise DefinitionError(f"the saved state of {name!r} has demos that are no objects")
    try:
        saved = [str(field["prefix"]) for field in signature["fields"]]
        texts = [signature["instructions"], *(field["description"] for field in signature["fields"])]
    except (TypeError, KeyError, IndexError):
        saved, texts = [], [None]
    if not all(isinstance(text, str) for text in texts):
        raise DefinitionError(f"the saved state of {name!r} has no readable signature")
    own = [str(field.json_schema_extra["prefix"]) for field in predictor.signature.fields.values()]
    if len(saved) != len(own) or saved[:-1] != own[:-1]:
        raise DefinitionError(
            f"the saved state is of another program: in {name!r} it has the fields {_listed(saved)}, and this one has "
            f"{_listed(own)}"
        )


def _listed(names: Any) -> str:
    return ", ".join(str(name).rstrip(":") for name in names) or "none"


def _lm(name: str, state: Any) -> Any:
    """A predictor's own LM; None where it had none, or one that is more than a model and its settings."""
    if not isinstance(state, Mapping) or not isinstance(state.get("model"), str):
        return None
    from dspool.worker.lms import DeadlineLM

    kind = state.get("_dspy_lm_class", "dspy.clients.lm.LM")
    if kind != "dspy.clients.lm.LM" or not isinstance(state.get("engine", ""), str):
        _log.warning("the saved state's LM of %s (%s) is code of its own; it is left out", name, state["model"])
        return None
    settings = {key: value for key, value in state.items() if key in _LM_PARTS and key != "model" and value is not None}
    if dropped := sorted(key for key, value in state.items() if value and key not in _LM_PARTS | _DROPPED_SILENTLY):
        _log.warning("the saved state's LM of %s is taken without %s; give the program an lm", name, ", ".join(dropped))
    return DeadlineLM(state["model"], **settings)
