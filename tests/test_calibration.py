"""Calibration: every point is what counting says, and the threshold is the last that may be."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rawredis_llm.caching.calibration import MOST_POINTS, Calibration, Point, calibration

OFFLINE = settings(deadline=None, database=None)
# Few distances, so that many are equal.
PAIR = st.tuples(st.integers(0, 8).map(lambda n: n / 4), st.booleans(), st.booleans())
PAIRS = st.lists(PAIR, min_size=2, max_size=30).filter(
    lambda p: len({same for _, same, _ in p}) == 2
)


def count(pairs: list[tuple[float, bool, bool]], limit: float) -> Point:
    hits = [same for distance, same, out in pairs if distance <= limit and not out]
    wanted = sum(same for _, same, _ in pairs)
    wrong = hits.count(False) / (len(pairs) - wanted)
    return Point(limit, sum(hits) / len(hits) if hits else 1.0, sum(hits) / wanted, wrong)


@given(pairs=PAIRS, target=st.sampled_from([0.0, 0.01, 0.25, 0.5, 1.0]))
@OFFLINE
def test_the_curve_is_what_counting_says(
    pairs: list[tuple[float, bool, bool]], target: float
) -> None:
    distances, same, out = (list(column) for column in zip(*pairs, strict=True))
    made = calibration(distances, same, vetoed=out, target_false_hits=target)
    assert made.points == [count(pairs, limit) for limit in sorted(set(distances))]
    admitted = [p.max_distance for p in made.points if p.false_hits <= target]
    assert made.max_distance == max(admitted, default=None)
    assert (made.target_false_hits, made.pairs) == (target, len(pairs))


def test_equal_distances_are_answered_together() -> None:
    made = calibration([0.1, 0.2, 0.2], [True, True, False], target_false_hits=0)
    assert made.max_distance == 0.1
    assert made.points[1] == Point(0.2, 2 / 3, 1.0, 1.0)


def test_no_threshold_serves_where_the_nearest_pair_is_a_false_hit() -> None:
    made = calibration([0.1, 0.2], [False, True])
    assert made.max_distance is None
    assert ">" not in str(made)
    assert "no threshold" in str(made)


def test_guards_allow_a_larger_threshold() -> None:
    assert calibration([0.1, 0.2, 0.3], [True, False, True]).max_distance == 0.1
    vetoed = [False, True, False]
    assert calibration([0.1, 0.2, 0.3], [True, False, True], vetoed=vetoed).max_distance == 0.3


def test_a_veto_of_the_only_paraphrase_costs_the_recall() -> None:
    made = calibration([0.1, 0.2], [True, False], vetoed=[True, False])
    assert made.points[0] == Point(0.1, 1.0, 0.0, 0.0)


@pytest.fixture
def many() -> Calibration:
    """Of 5,000 pairs, with a threshold near the start of the curve."""
    distances = np.linspace(0, 2, 5000)
    return calibration(distances, np.arange(5000) % 97 != 61, target_false_hits=0.02)


def test_a_long_curve_is_thinned_and_keeps_its_ends_and_the_threshold(many: Calibration) -> None:
    x = [point.max_distance for point in many.points]
    assert MOST_POINTS / 2 < len(x) <= MOST_POINTS + 1
    assert x == sorted(set(x))
    assert (x[0], x[-1]) == (0.0, 2.0)
    assert many.max_distance in x


def test_the_table_marks_the_threshold(many: Calibration) -> None:
    head, *rows, last = str(many).splitlines()
    assert head.split() == ["max_distance", "precision", "recall", "false", "hits"]
    assert 10 <= len(rows) <= 16
    marked = [row for row in rows if row.startswith(">")]
    assert len(marked) == 1
    assert many.max_distance is not None
    assert f"{many.max_distance:.4f}" in marked[0]
    assert last == f"{many.max_distance:.6g} for at most 2.00% false hits, 5000 pairs"


def test_it_is_written_as_json(many: Calibration, tmp_path: Path) -> None:
    many.write(tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text.startswith('{\n  "max_distance": ')
    assert text.endswith("}\n")
    read = json.loads(text)
    assert read == many.to_dict()
    points = [Point(**point) for point in read.pop("points")]
    assert Calibration(**read, points=points) == many


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distances": [0.1]}, "one length"),
        ({"same": [True]}, "one length"),
        ({"vetoed": [True]}, "one length"),
        ({"distances": [[0.1, 0.2]], "same": [[True, False]]}, "one length"),
        ({"distances": [], "same": []}, "empty"),
        ({"distances": [0.1, math.nan]}, "NaN"),
        ({"same": [True, True]}, "both"),
        ({"same": [False, False]}, "both"),
        ({"target_false_hits": -0.1}, "target_false_hits"),
        ({"target_false_hits": 1.1}, "target_false_hits"),
        ({"target_false_hits": math.nan}, "target_false_hits"),
    ],
)
def test_what_cannot_be_judged_is_refused(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"distances": [0.1, 0.2], "same": [True, False], **changes}
    with pytest.raises(ValueError, match=message):
        calibration(arguments.pop("distances"), arguments.pop("same"), **arguments)


@pytest.mark.parametrize(("suffix", "magic"), [("svg", b"<?xml"), ("PNG", b"\x89PNG")])
def test_it_is_drawn(many: Calibration, tmp_path: Path, suffix: str, magic: bytes) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"curve.{suffix}"
    many.plot(path)
    assert path.read_bytes().startswith(magic)
    assert "matplotlib.pyplot" not in sys.modules


def test_without_a_threshold_only_the_curve_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    calibration([0.1, 0.2], [False, True]).plot(tmp_path / "a.svg")
    assert (tmp_path / "a.svg").stat().st_size > 1000


def test_drawing_names_the_extra_and_refuses_other_suffixes(
    many: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'rawredis_llm\[plot\]'"):
        many.plot(tmp_path / "a.svg")
    with pytest.raises(ValueError, match=r"\.svg or \.png, not 'a\.pdf'"):
        many.plot(str(tmp_path / "a.pdf"))
    assert list(tmp_path.iterdir()) == []
