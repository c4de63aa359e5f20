"""First pool: one call, then many, on two worker processes."""

import dspool
from dspool.testing.offline_lm import offline_lm  # quotes instead of thinking; a real one: lm="openai/gpt-4o-mini"

texts = [
    "A lease is the right to use a slot. It ends when the slot is given back.",
    "A worker is one process. A worker that dies is replaced, and its neighbours go on.",
]
with dspool.Pool(workers=2, lm=offline_lm()) as pool:
    answer = pool.run("text -> summary, keywords: list[str]", {"text": texts[0]})  # in one of the workers
    print(answer.summary, answer.keywords)  # a dspy.Prediction, with the types that the signature names
    for answer in pool.map("text -> summary", [{"text": text} for text in texts], progress=True):
        print(answer.summary)  # one for each row, in their order
