"""Which distance still means "the same question": a threshold from pairs that were judged.

Pure arithmetic over distances; must not import a client. matplotlib is imported only to draw.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib import import_module
from math import ceil
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["Calibration", "Point", "calibration"]

MOST_POINTS: Final = 200  # a curve of more cannot be told from it by eye
ROWS: Final = 15


@dataclass(frozen=True, slots=True)
class Point:
    """What answering every pair with `distance <= max_distance` would have meant.

    `precision`: the share of answers that are right, 1.0 if there are none. `recall`: the share of
    the same pairs that are answered. `false_hits`: the share of the *different* ones that are.
    """

    max_distance: float
    precision: float
    recall: float
    false_hits: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """A threshold, and the curve it was chosen from, in ascending order of distance.

    `max_distance` is None if already the smallest distance of all has too many false hits.
    """

    max_distance: float | None
    target_false_hits: float
    pairs: int
    points: list[Point]

    def __str__(self) -> str:
        """Return a table of some 15 rows; `>` marks the threshold."""
        lines = ["  max_distance  precision  recall  false hits"]
        for i in _thinned(len(self.points), ROWS, self._chosen()):
            point = self.points[i]
            mark = ">" if i == self._chosen() else " "
            numbers = f"{point.precision:9.1%}  {point.recall:6.1%}  {point.false_hits:10.2%}"
            lines.append(f"{mark} {point.max_distance:12.4f}  {numbers}")
        found = "no threshold" if self.max_distance is None else f"{self.max_distance:.6g}"
        lines.append(
            f"{found} for at most {self.target_false_hits:.2%} false hits, {self.pairs} pairs"
        )
        return "\n".join(lines)

    def _chosen(self) -> int | None:
        found = (i for i, p in enumerate(self.points) if p.max_distance == self.max_distance)
        return next(found, None)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold: the fields by their names."""
        return asdict(self)

    def write(self, path: str | Path) -> None:
        """Write the fields as JSON. Raises OSError where it cannot."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    def plot(self, path: str | Path) -> None:
        """Draw precision, recall and false hits over the threshold, as .svg or .png.

        Raises ImportError without matplotlib, ValueError for another suffix.
        """
        kind = Path(path).suffix.lower().removeprefix(".")
        if kind not in ("svg", "png"):
            raise ValueError(f"path must end in .svg or .png, not {Path(path).name!r}")
        try:
            # Figure without pyplot: no window, no global state.
            figure = import_module("matplotlib.figure").Figure(figsize=(7, 4), layout="tight")
            import_module("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
        except ImportError as error:
            raise ImportError("drawing needs: pip install 'rawredis_llm[plot]'") from error
        axes = figure.subplots()
        x = [point.max_distance for point in self.points]
        for name in ("precision", "recall", "false_hits"):
            shares = [getattr(point, name) for point in self.points]
            axes.step(x, shares, where="post", label=name.replace("_", " "))
        if self.max_distance is not None:
            label = f"max_distance {self.max_distance:.4g}"
            axes.axvline(self.max_distance, color="black", linestyle="--", label=label)
        axes.set(xlabel="max_distance", ylabel="share of pairs", ylim=(-0.02, 1.02))
        axes.legend()
        figure.savefig(path, format=kind)


def calibration(
    distances: npt.ArrayLike,
    same: npt.ArrayLike,
    *,
    vetoed: npt.ArrayLike | None = None,
    target_false_hits: float = 0.01,
) -> Calibration:
    """Return the largest distance at which at most `target_false_hits` of the different pairs hit.

    `distances` (n,): cosine distances, 0 to 2. `same` (n,): whether a pair may share an answer.
    `vetoed` (n,): whether guards refuse it at any distance. A log of lookups serves as well: the
    distance of each, and whether its answer was right. Thresholds are the distances that occur, so
    the one chosen is the last one admitted, itself: in between nothing was measured, and the next
    one would exceed the target. Raises ValueError if lengths differ, for no pairs, NaN, only same
    or only different pairs, and a target outside 0..1.
    """
    far, good, out = _checked(distances, same, vetoed)
    if not 0 <= target_false_hits <= 1:
        raise ValueError(f"target_false_hits must be from 0 to 1, not {target_false_hits}")
    order = np.argsort(far, kind="stable")
    far, good, out = far[order], good[order], out[order]
    # The last of each run of equal distances stands for them all: ties are answered together.
    ends = np.flatnonzero(np.append(far[1:] != far[:-1], True))
    right = np.cumsum(good & ~out)[ends]
    wrong = np.cumsum(~good & ~out)[ends]
    recall, false_hits = right / good.sum(), wrong / (~good).sum()
    precision = np.where(right + wrong, right / np.maximum(right + wrong, 1), 1.0)
    admitted = int(np.searchsorted(false_hits, target_false_hits, side="right"))
    chosen = admitted - 1 if admitted else None
    columns = (far[ends], precision, recall, false_hits)
    points = [
        Point(*(float(column[i]) for column in columns))
        for i in _thinned(len(ends), MOST_POINTS, chosen)
    ]
    limit = None if chosen is None else float(far[ends[chosen]])
    return Calibration(limit, float(target_false_hits), len(far), points)


def _checked(distances: Any, same: Any, vetoed: Any) -> tuple[npt.NDArray[Any], ...]:
    """Return the three columns as float64, bool, bool of one length."""
    far = np.asarray(distances, np.float64)
    good = np.asarray(same, np.bool_)
    out = np.zeros(far.shape, np.bool_) if vetoed is None else np.asarray(vetoed, np.bool_)
    if far.ndim != 1 or not far.shape == good.shape == out.shape:
        shapes = f"{far.shape}, {good.shape} and {out.shape}"
        raise ValueError(f"distances, same and vetoed must be of one length, not {shapes}")
    if not len(far):
        raise ValueError("distances must not be empty")
    if np.isnan(far).any():
        raise ValueError("distances must not hold NaN")
    if good.all() or not good.any():
        raise ValueError("same must hold both: pairs that are the same and pairs that are not")
    return far, good, out


def _thinned(count: int, most: int, kept: int | None) -> list[int]:
    """Return at most `most` + 1 indices, evenly spread: the first, the last, and `kept`."""
    step = max(count - 1, 1) / (most - 1)
    spread = {min(ceil(i * step), count - 1) for i in range(most)} if count > most else range(count)
    return sorted({*spread, *(() if kept is None else (kept,))})
