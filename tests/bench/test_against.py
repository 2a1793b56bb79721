"""Numbers are found in the tables that the benches print."""

from __future__ import annotations

from bench.against import read_tables

SERVE = """$ python -m bench.serve --decodes 1 16
AMD EPYC, 2 cores, torch 2.13.0+cpu, Python 3.11.7, commit 739a22e
clients   written/s   of one   p50 first
      1        60.5     1.00        0.04
     16       201.2     3.32        0.80
"""
CPU = """Shape 1b, Q4_K_M, tower F16: AMD EPYC, 2 threads

| work | llama.cpp | ivl | ratio |
|---|---|---|---|
| write, tokens/s | not measured | 63.9 |  |
"""
LOAD = "files          2.1 GB\nload_s         1.40 median, 1.32 least\n"


def test_columns_of_text() -> None:
    found = read_tables(SERVE)
    assert found["16", "written/s"] == 201.2
    assert found["1", "p50 first"] == 0.04
    assert len(found) == 6


def test_tables_of_markdown_with_empty_cells() -> None:
    assert read_tables(CPU) == {("write, tokens/s", "ivl"): 63.9}


def test_lines_of_a_name_and_a_number() -> None:
    assert read_tables(LOAD) == {("files", ""): 2.1, ("load_s", ""): 1.40}
