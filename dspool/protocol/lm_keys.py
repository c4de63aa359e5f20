"""Whether an LM will have a key in its worker: whose model it is, and which variables DSPy and LiteLLM read for whom.

DSPy 3.4's own client serves the providers of `NATIVE`, LiteLLM those of `LITELLM`, and those of `NATIVE` too where an
LM asks for it or its settings need it. Tests compare what is said of DSPy's client with its own tables, and have
LiteLLM read the variables of the second.

Rules:
    1. Pure. What the answer depends on is the LM's spec and the environment that it is given.
    2. It is said only where a key is known to be missing. Whoever is not in the tables may need none, or find it in a
       file, a login or the machine's own identity, as the clouds' clients do.
    3. No value is ever shown, of a variable or of an argument.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from dspool.protocol.messages import LMSpec

NATIVE: dict[str, tuple[str, ...]] = {
    "openai": ("OPENAI_API_KEY",),
    "anthropic": ("ANTHROPIC_API_KEY",),
    "gemini": ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    "groq": ("GROQ_API_KEY",),
    "openrouter": ("OPENROUTER_API_KEY",),
    "deepseek": ("DEEPSEEK_API_KEY",),
    "xai": ("XAI_API_KEY",),
    "moonshot": ("MOONSHOTAI_API_KEY", "MOONSHOT_API_KEY"),
}
"""Provider -> the variables that DSPy's own client looks for its key in, in that order."""

LITELLM: dict[str, tuple[str, ...]] = {
    "ai21_chat": ("AI21_API_KEY",),
    "cerebras": ("CEREBRAS_API_KEY",),
    "codestral": ("CODESTRAL_API_KEY",),
    "cohere": ("COHERE_API_KEY", "CO_API_KEY"),
    "cohere_chat": ("COHERE_API_KEY", "CO_API_KEY"),
    "dashscope": ("DASHSCOPE_API_KEY",),
    "deepinfra": ("DEEPINFRA_API_KEY",),
    "fireworks_ai": ("FIREWORKS_API_KEY", "FIREWORKS_AI_API_KEY", "FIREWORKSAI_API_KEY", "FIREWORKS_AI_TOKEN"),
    "mistral": ("MISTRAL_API_KEY",),
    "nebius": ("NEBIUS_API_KEY",),
    "novita": ("NOVITA_API_KEY",),
    "nvidia_nim": ("NVIDIA_NIM_API_KEY",),
    "perplexity": ("PERPLEXITYAI_API_KEY", "PERPLEXITY_API_KEY"),
    "sambanova": ("SAMBANOVA_API_KEY",),
    "together_ai": ("TOGETHER_API_KEY", "TOGETHER_AI_API_KEY", "TOGETHERAI_API_KEY", "TOGETHER_AI_TOKEN"),
    "volcengine": ("VOLCENGINE_API_KEY",),
}
"""Provider -> the variables that LiteLLM looks for its key in."""

LITELLM_ALSO: dict[str, tuple[str, ...]] = {
    "anthropic": ("ANTHROPIC_AUTH_TOKEN",),
    "openrouter": ("OR_API_KEY",),
}
"""What LiteLLM takes beside for a provider that DSPy's own client serves; its own client doesn't."""

_FAMILIES = {
    **dict.fromkeys(("gpt", "chatgpt", "chat-latest", "o1", "o3", "o4", "sora"), "openai"),
    **dict.fromkeys(("gemini", "gemma", "nano-banana", "veo"), "gemini"),
    "claude": "anthropic",
    "grok": "xai",
}
"""First word of a model's name -> its provider, for models that DSPy and LiteLLM find without one."""
_ENGINES = ("auto", "lm15", "litellm")


def provider_of(model: str) -> str:
    """The provider in "provider/model", or whose model it is by its name; empty where that can't be known."""
    provider, slash, _ = model.partition("/")
    if slash:
        return provider
    return next((name for word, name in _FAMILIES.items() if model == word or model.startswith(f"{word}-")), "")


def meant_provider(spec: LMSpec) -> str:
    """The known provider that the LM's own, which is not known, is almost spelled like; empty where there is none."""
    provider, slash, _ = spec.model.partition("/")
    if not slash or spec.pickled is not None or spec.kwargs.get("custom_llm_provider"):
        return ""
    known = {*NATIVE, *LITELLM}
    return "" if provider in known else next(iter(get_close_matches(provider.lower(), known, 1, cutoff=0.8)), "")


def missing_key(spec: LMSpec, environment: Mapping[str, str]) -> str | None:
    """What is missing where a worker's LM will have no key, and where to set it; None as missing_variables() is empty.

    Args:
        spec: the LM.
        environment: the worker's environment.
    """
    names = " or ".join(missing_variables(spec, environment))
    if not names:
        return None
    return (
        f"the LM {spec.model[:80]!r} has no key: {names} is not set. Set it in the workers' environment (env= of the "
        f"pool or worker group, or before the pool is opened), or give the LM an api_key"
    )


def missing_variables(spec: LMSpec, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The variables of which one would have to be set, for an LM that will have no key.

    Args:
        spec: the LM.
        environment: that of the process which asks it.

    Returns:
        Their names; empty where there is a key, or where none can be known to be needed: headers of one's own, a
        provider that isn't known here, an LM that is an object of its own, or a server of one's own (api_base) of
        any provider but openai, whose clients send nothing without some key.
    """
    settings = spec.kwargs
    if spec.pickled is not None or settings.get("engine", "auto") not in _ENGINES:
        return ()
    if any(settings.get(name) for name in ("api_key", "headers", "extra_headers")):
        return ()
    if settings.get("custom_llm_provider") or settings.get("azure_ad_token_provider"):
        return ()
    provider = provider_of(spec.model)
    if provider != "openai" and (settings.get("api_base") or settings.get("base_url")):
        return ()
    prefix = provider.upper()
    if any(environment.get(f"{prefix}_{name}") for name in ("API_BASE", "BASE_URL")):
        return ()
    variables = _variables(provider, through_litellm=_through_litellm(spec))
    return () if any(environment.get(name) for name in variables) else variables


def _through_litellm(spec: LMSpec) -> bool:
    return spec.kwargs.get("engine") == "litellm" or spec.kwargs.get("model_type") == "text"


def _variables(provider: str, *, through_litellm: bool) -> tuple[str, ...]:
    if provider in NATIVE:
        return NATIVE[provider] + (LITELLM_ALSO.get(provider, ()) if through_litellm else ())
    return LITELLM.get(provider, ())
