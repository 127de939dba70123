"""Markdown tables against tables written by hand."""

import pytest

from voken.errors import ConfigError, EmptyDataError
from voken_lab.evaluation.tables import results_table


def record(system, seed=0, **changes):
    return {
        "system": system,
        "dataset": "emoji",
        "protocol": "inductive",
        "readout": "",
        "seed": seed,
        "beams": None,
        "bytes_per_picture": None,
        "cutoffs": [1, 10],
        "recall": {"1": 0.2, "10": 0.5},
        "sequence_recall": None,
        "collision_rate": None,
        "pool_size": 329,
        "query_count": 1900,
        "queries_per_second": 1234.5,
        "machine": {"cpu": "Some CPU", "cores": 2, "threads": 1, "torch": "2.13.0", "accelerator": ""},
        **changes,
    }


OURS = {
    "readout": "generate",
    "beams": 20,
    "bytes_per_picture": 5.0,
    "sequence_recall": {"1": 0.16, "10": 0.46},
    "collision_rate": 0.0123,
    "queries_per_second": 87.65,
}


def test_the_whole_table():
    records = [
        record("two | tower", bytes_per_picture=1024.0),
        record("voken", 0, recall={"1": 0.1, "10": 0.4}, **OURS),
        record("voken", 1, recall={"1": 0.2, "10": 0.5}, memory_bytes=12345, **OURS),
    ]
    assert results_table(records, base="two | tower") == (
        "**emoji, inductive**\n"
        "\n"
        "| system | R@1 | R@10 | ratio to two \\| tower |"
        " sequence R@1 / 10 | collisions | bytes/picture | queries/s |\n"
        "|---|---:|---:|---:|---:|---:|---:|---:|\n"
        "| two \\| tower | 20.0 | 50.0 | 1.00 / 1.00 | – | – | 1,024 | 1,234 |\n"
        "| voken, generate, 20 beams | 15.0 ± 7.1 | 45.0 ± 7.1 | 0.75 / 0.90 | 16.0 / 46.0 | 1.2 ± 0.0 | 5 | 87.7 |\n"
        "\n"
        "Pool 329 pictures, 1,900 queries; seeds 0, 1; Some CPU, 2 cores, 1 thread, torch 2.13.0."
        " The caption memory takes 12,345 bytes beside all pictures.\n"
    )


def test_readouts_and_beams_have_their_own_rows():
    records = [
        record("voken", readout=readout, beams=beams)
        for readout, beams in [("generate", 10), ("generate", 20), ("voken", 20), ("vector", 20)]
    ]
    rows = [line.split(" | ")[0] for line in results_table(records).splitlines() if line.startswith("| voken")]
    assert rows == [
        "| voken, generate, 10 beams",
        "| voken, generate, 20 beams",
        "| voken, + voken rerank, 20 beams",
        "| voken, + vector rerank, 20 beams",
    ]


def test_protocols_and_pools_have_their_own_tables():
    text = results_table([record("s"), record("s", protocol="transductive"), record("s", pool="full pool")])
    titles = [line for line in text.splitlines() if line.startswith("**")]
    assert titles == ["**emoji, inductive**", "**emoji, transductive**", "**emoji, full pool, inductive**"]


def test_pools_that_differ_by_seed_are_given_as_a_range():
    text = results_table([record("s", 0, pool_size=1329), record("s", 1, pool_size=1331)])
    assert "Pool 1,329 to 1,331 pictures" in text


def test_a_base_of_nothing_has_no_ratio():
    text = results_table([record("base", recall={"1": 0.0, "10": 0.5}), record("other")], base="base")
    assert "| other | 20.0 | 50.0 | – / 1.00 |" in text


def test_a_base_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"'CLIP' has 0 rows .* Systems there: grace, voken"):
        results_table([record("voken"), record("grace")], base="CLIP")
    with pytest.raises(ConfigError, match="2 rows"):
        results_table([record("voken", beams=1), record("voken", beams=2)], base="voken")
    with pytest.raises(EmptyDataError, match="no evaluation"):
        results_table([])
