"""How well a model reads, how fast, whether it is whole, and what matters in its weights.

data.py         samples: pages, questions, conversations, texts
sequences.py    a sample as the tokens that a model reads
metrics.py      edits, divergences, cosines
fidelity.py     a model beside the one that it was made from; verdict.py: what the numbers mean
integrity.py    whether files hold what they should, and numbers stay numbers
reference.py    a model beside outputs of another code, which record.py writes
speed.py        tokens a second; probe.py: what the processor can do; verification.py: plans
activations.py  what goes into matrices; importance.py: their importance; awq.py: 4 bits from it
"""
