"""How well a model reads, how fast, whether it is whole, and what matters in its weights.

data.py          samples: pages, questions, conversations, texts, and their tokens
metrics.py       edits, divergences, cosines
fidelity.py      a model beside the one that it was made from, and what the numbers mean
integrity.py     whether files hold what they should, and numbers stay numbers
reference.py     a model beside outputs of another code, and recording them
check.py         all of these, as `ivl check` has them
speed.py         tokens a second, and what the processor can do; verification.py: plans
importance.py    what goes into matrices, and how important it is; awq.py: 4 bits from it
"""
