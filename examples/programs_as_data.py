"""A program as plain data: typed outputs, a mistake that is told at once, and a new version while the pool works.

It runs offline: the LM quotes and counts instead of thinking.
"""

import dspool
from dspool.testing.offline_lm import offline_lm  # a real one: lm="openai/gpt-4o-mini"

CARD = {
    "signature": {
        "inputs": [{"name": "text"}],
        "outputs": [
            {
                "name": "card",
                "type": {
                    "type": "object",
                    "title": "Card",
                    "properties": {
                        "keywords": {"type": "array", "items": {"type": "string"}, "maxItems": 2},
                        "summary": {"type": "string"},
                    },
                    "required": ["keywords", "summary"],
                },
            }
        ],
    },
}
TEXT = "A lease is the right to use a slot. It ends when the slot is given back."

with dspool.Pool(workers=2, lm=offline_lm()) as pool:
    pool.create_program("card", CARD)
    card = pool.run("card", {"text": TEXT}).card  # a pydantic model, made of the schema
    print(", ".join(card.keywords), "|", card.summary)

    agent = {"signature": "text -> summary", "program_type": "react", "tools": ["no_such_module:search"]}
    try:
        pool.create_program("agent", agent)
    except dspool.ProgramError as error:
        print("told before any call:", error)

    pool.create_program("card", {**CARD, "program_type": "chain_of_thought"}, replace=True)
    print(pool.run("card", {"text": TEXT}).reasoning)
    info = pool.program_info("card")
    times = "once" if info["execution_count"] == 1 else f"{info['execution_count']} times"
    print(f"ran {times}; kind {info['kind']}")
