"""Markdown tables, means with deviations, and sizes for people."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scdd.tables import mean_sd, size, table

words = st.text("abcxyz 0123456789.%", max_size=12).map(str.strip)


def test_a_table_is_aligned_markdown():
    assert table(["name", "top-1 %"], [["a", "5.0"], ["longer name", "95.3 +- 0.4"]]) == (
        "| name        |     top-1 % |\n"
        "| ----------- | ----------: |\n"
        "| a           |         5.0 |\n"
        "| longer name | 95.3 +- 0.4 |"
    )


@given(
    st.integers(1, 5).flatmap(
        lambda n: st.lists(st.lists(words, min_size=n, max_size=n), min_size=1)
    )
)
def test_every_cell_comes_back_out_of_a_table_whose_lines_are_equally_long(rows):
    lines = table(rows[0], rows[1:]).splitlines()
    assert len({len(line) for line in lines}) == 1
    read = [[cell.strip() for cell in line[2:-2].split(" | ")] for line in lines]
    assert read[:1] + read[2:] == rows
    assert all(set(cell) <= {"-", ":"} and len(cell) >= 3 for cell in read[1])


def test_a_row_of_another_length_is_refused():
    with pytest.raises((ValueError, IndexError)):
        table(["a", "b"], [["1"]])
    with pytest.raises((ValueError, IndexError)):
        table(["a", "b"], [["1", "2", "3"]])


def test_mean_and_deviation_of_none_one_and_several():
    assert mean_sd([]) == "n/a"
    assert mean_sd([95.26]) == "95.3"
    assert mean_sd([94.0, 96.0]) == "95.0 +- 1.4"


@given(st.lists(st.floats(0, 100), min_size=2, max_size=6))
def test_mean_and_deviation_are_those_of_the_sample(values):
    mean, sd = (float(part) for part in mean_sd(values).split(" +- "))
    assert mean == pytest.approx(statistics.mean(values), abs=0.0501)
    assert sd == pytest.approx(statistics.stdev(values), abs=0.0501)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (812, "812 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (3_400_000, "3.4 MB"),
        (30_000_000_000, "30.0 GB"),
        (2.5e12, "2.5 TB"),
        (4e15, "4000.0 TB"),
    ],
)
def test_a_number_of_bytes_reads(count: float, text: str):
    assert size(count) == text
