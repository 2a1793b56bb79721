"""The programs that plans are made for, by name: ivl itself, and its rivals."""

from __future__ import annotations

import difflib
import shlex

from ivl.errors import UnsupportedError
from ivl.footprint.placement import IVL, Program
from ivl.footprint.tensors import AWQ
from ivl.planner.command import words_of_ivl
from ivl.planner.plan import Plan
from ivl.planner.rivals.llama_cpp import LLAMA_CPP
from ivl.planner.rivals.rival import Rival
from ivl.planner.rivals.vllm import VLLM
from ivl.quant.mixes import READ_MIXES, find_mix

BACKENDS: dict[str, Program] = {program.name: program for program in (IVL, LLAMA_CPP, VLLM)}


def find_backend(name: str) -> Program:
    """UnsupportedError, which names the nearest, for an unknown one."""
    found = BACKENDS.get(name.lower().replace("llamacpp", "llama.cpp"))
    if found is None:
        near = difflib.get_close_matches(name.lower(), BACKENDS, n=1, cutoff=0.4)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise UnsupportedError(
            f"There is no back end {name!r}.", f"{hint}Known: {', '.join(BACKENDS)}."
        )
    return found


def find_type(name: str) -> str:
    """The name of a decoder's type in its usual spelling: of any that a file may have which ivl
    reads, `Q4_K` being Q4_K_M as with llama.cpp. UnsupportedError for an unknown one."""
    upper = name.upper()
    if upper == AWQ or upper in READ_MIXES:
        return upper
    try:
        return find_mix(f"{upper}_M" if upper in ("Q3_K", "Q4_K", "Q5_K") else upper).name
    except UnsupportedError as error:
        known = ", ".join([*READ_MIXES, AWQ])
        raise UnsupportedError(
            f"There is no quantization called {name!r}.",
            error.hint.replace("ivl has", "Known:").rstrip(".") + f", {known}.",
        ) from None


def command_of(plan: Plan) -> tuple[str, ...]:
    """Command lines, quoted for a shell, in the order in which they are to be typed: each option as
    the program that it is for reads it."""
    backend = plan.setting.backend
    lists = backend.commands(plan) if isinstance(backend, Rival) else words_of_ivl(plan)
    return tuple(shlex.join(words) for words in lists)
