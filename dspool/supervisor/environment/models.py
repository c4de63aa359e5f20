"""Language models: whether there is a key, and which variables make their first call expensive."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches

from dspool.protocol.lm_keys import meant_provider, missing_key
from dspool.protocol.messages import DefinedProgram, LMSpec, SignatureProgram
from dspool.supervisor.environment.asked import Asked, Finding, Program, failed, good, warning

_NUMBER = re.compile(r"\d+")
LITELLM_COSTS = "3 s at the first call and 140 MB in each worker"


def lm(asked: Asked) -> list[Finding]:
    """Whether LM and adapter can be sent to a worker at all."""
    wrong = [failed(text, f"correct {option}=") for option, text in asked.problems.items()]
    if wrong:
        return wrong
    misspelled = [_misspelled(spec, meant) for spec in asked.lms().values() if (meant := meant_provider(spec))]
    if misspelled:
        return misspelled
    if asked.lm is not None:
        return [good(name_of(asked.lm))]
    told = "the pool has none: each call uses the one that its caller configured, or passes"
    in_need = [program.label for program in asked.programs if _needs_lm(program)]
    if in_need:
        return [warning(f"{told}; {', '.join(in_need)} can't do without", "pass lm= to the pool, or to each call")]
    return [good(told)]


def _misspelled(spec: LMSpec, meant: str) -> Finding:
    provider, _, model = spec.model.partition("/")
    return warning(
        f"no provider {provider!r} is known here; the name is close to {meant!r}",
        f'write "{meant}/{model}" if that is meant; LiteLLM may know a provider of that name',
        name_of(spec),
    )


def _needs_lm(program: Program) -> bool:
    match program.program and program.program.spec:
        case SignatureProgram():
            return True
        case DefinedProgram(definition=definition, lm=None):
            return "program" not in definition  # code of one's own may do without
        case _:
            return False


def lm_key(asked: Asked) -> list[Finding]:
    """Whether each configured LM has a key, as far as that can be known without a call."""
    findings: dict[Finding, None] = {}
    for kind in asked.kinds():
        for spec in asked.lms().values():
            findings[_key(spec, kind.environment, kind.preload)] = None
    return list(findings) or [good("no LM is configured that could need one")]


def _key(spec: LMSpec, environment: Mapping[str, str], preload: tuple[str, ...]) -> Finding:
    lacks = missing_key(spec, environment)
    if lacks is None:
        return good("has a key, or needs none that is known of here", name_of(spec))
    reason, _, advice = lacks.removeprefix(f"the LM {spec.model[:80]!r} ").partition(". ")
    if preload:
        return warning(f"{reason}, unless a preload module sets it ({', '.join(preload)})", advice, name_of(spec))
    return failed(reason, advice, name_of(spec))


def lm_gateway(asked: Asked) -> list[Finding]:
    """Variables that name a provider's address: DSPy hands such calls to litellm, which takes its time to import."""
    found: dict[str, Finding] = {}
    for kind in asked.kinds():
        for provider in sorted({_provider(spec) for spec in asked.lms().values()} or {"OPENAI"}):
            for name in (f"{provider}_API_BASE", f"{provider}_BASE_URL"):
                if kind.environment.get(name):
                    found[name] = _gateway(name, "litellm" in kind.preload)
    return list(found.values()) or [good("no variable sends calls by way of litellm")]


def _gateway(name: str, preloaded: bool) -> Finding:
    told = f"{name} is set: DSPy sends such calls by way of litellm"
    if preloaded:
        return good(f"{told}, which preload= has imported before")
    return warning(
        f"{told}, whose import takes {LITELLM_COSTS}",
        f"unset {name} and pass the address to the LM as api_base=, which DSPy's own client takes; or say "
        "preload=['litellm'], so that it is imported once",
    )


def lm_limits(asked: Asked) -> list[Finding]:
    """Whether each model of lm_limits= is spelled as its LM is: else nothing is limited, and nobody notices."""
    models = {spec.model for spec in asked.lms().values() if spec.model}
    unlike = {limited: _alike(limited, models) for limited in asked.options.lm_limits if limited not in {*models, "*"}}
    return [
        warning(
            f"limits {limited!r:.80}, and no LM that is configured has that model; {' and '.join(map(repr, alike))} "
            f"{'has' if len(alike) == 1 else 'have'} no limit",
            "name the model as its LM does, provider included, if that one is meant",
        )
        for limited, alike in unlike.items()
        if alike and "*" not in asked.options.lm_limits
    ] or [good(f"limits {', '.join(asked.options.lm_limits)}" if asked.options.lm_limits else "none")]


def _alike(limited: str, models: set[str]) -> list[str]:
    """The models that a name may be meant for: with its provider left out, or misspelt; not another version."""
    same = {model for model in models if model.rpartition("/")[2] == limited.rpartition("/")[2]}
    close = get_close_matches(limited, models, cutoff=0.85)
    return sorted(same | {model for model in close if _NUMBER.findall(model) == _NUMBER.findall(limited)})


def _provider(spec: LMSpec) -> str:
    return spec.model.partition("/")[0].upper() if spec.pickled is None else ""


def name_of(spec: LMSpec) -> str:
    """An LM as people know it; its arguments may hold a key and aren't shown."""
    return spec.model or "an LM object"
