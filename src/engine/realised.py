"""What predictions were worth once their labels came: metrics by model version and week, and of all versions together
over a period.

Rows that a model was trained on never count as its predictions. When to look is ``stages/monitor.py``; the metrics
themselves are ``learning/metrics.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from engine.batching import Chunk
from engine.features.labelled import LabelView, labelled_rows
from engine.layout import EVENT_TIME, LABEL, label_events_table, predictions_table, prepared_app, prepared_table
from engine.learning.metrics import Metrics, PositiveScores, RankingMetrics
from engine.memory.scope import Scope
from engine.stage import ChildContext
from engine.units import parse_time

if TYPE_CHECKING:
    import polars as pl

POSITIVE_BYTES = 64
"""Of a positive while a group is measured: its score, sorted and distinct, and the negatives counted beside it."""

_WEEK = timedelta(weeks=1)
AT_ONCE = 26 * _WEEK
"""Weeks that are measured together: calibration keeps 100 kB a group, so that all of years would not be bounded; but
each time row groups are decoded anew that have rows of other weeks, too.
"""


@dataclass(frozen=True)
class Group:
    """Predictions that are measured together."""

    version: int  # of the model; 0 for all
    start: datetime  # of event time
    end: datetime


class Realised:
    """Reads predictions with the labels that were known at a clock.

    Parameters
    ----------
    context, scope
        Of the task that reads.
    feature_set
        Whose label events count.
    models
        ``trained_until`` and ``threshold`` by version, of all that were ever champion.
    known_by
        The clock.
    """

    def __init__(
        self,
        context: ChildContext,
        scope: Scope,
        *,
        feature_set: str,
        models: Mapping[str, Mapping[str, Any]],
        known_by: datetime,
    ) -> None:
        predictions = predictions_table(context.workspace)
        prepared = prepared_table(context.workspace, feature_set)
        side = label_events_table(context.workspace, feature_set)
        self._scope = scope
        self._models = models
        self._schema = predictions.schema()
        self._chunks: Sequence[Chunk] = predictions.chunks() if models and self._schema is not None else ()
        self._labels = LabelView(
            chunks=side.chunks(newest_n=prepared.transaction(prepared_app(feature_set))),
            known_by=known_by,
            absent=context.spec.labels.absent,
            delay=context.spec.labels.delay,
        )
        self.rows = 0  # measured so far, once a group

    def touched_since(self, clock: datetime | None, *, predictions_n: int) -> datetime | None:
        """Return the earliest event time of a prediction after commit ``predictions_n``, or of a label after a clock.

        Not earlier than the first prediction; None where nothing is new.
        """
        times = [chunk.minimum[EVENT_TIME] for chunk in self._chunks if chunk.n > predictions_n]
        times += [
            chunk.minimum[EVENT_TIME]
            for chunk in self._labels.chunks
            if clock is None or chunk.maximum["labelled_at"] > clock
        ]
        if not times or not self._chunks:
            return None
        since: datetime = max(min(times), min(chunk.minimum[EVENT_TIME] for chunk in self._chunks))
        return since

    def weeks(self, since: datetime) -> Iterator[tuple[Group, Metrics]]:
        """Yield the metrics of each version in each week, from the one that holds ``since`` on."""
        start = _monday(since)
        newest = max((chunk.maximum[EVENT_TIME] for chunk in self._chunks), default=None)
        while newest is not None and start <= newest:
            end = start + AT_ONCE
            yield from self._measured(start, end, _by_week).items()
            start = end

    def period(self, low: datetime, high: datetime) -> Metrics | None:
        """Return what all versions were worth for event times in ``[low, high)``, None without a prediction.

        Precision, recall, F1 and the alert rate are of the alerts as they were raised: thresholds of several models
        may meet.
        """
        group = Group(0, low, high)
        found = self._measured(low, high, lambda rows: iter([(group, rows)]))
        return found.get(group)

    def _measured(
        self, low: datetime, high: datetime, grouped: Callable[[pl.DataFrame], Iterator[tuple[Group, pl.DataFrame]]]
    ) -> dict[Group, Metrics]:
        positives: dict[Group, PositiveScores] = {}
        for group, part in self._parts(low, high, grouped):
            scores, labels = part["score"].to_numpy(), part[LABEL].to_numpy()
            positives.setdefault(group, PositiveScores()).update(scores, labels)
        counted = {
            group: RankingMetrics(kept.finish(), threshold=self._threshold(group.version))
            for group, kept in positives.items()
        }
        del positives
        alerts: dict[Group, _Alerts] = {}
        for group, part in self._parts(low, high, grouped):
            flags, labels = part["alert"].to_numpy(), part[LABEL].to_numpy()
            counted[group].update(part["score"].to_numpy(), labels)
            if not group.version:
                alerts[group] = alerts.get(group, _Alerts()).after(flags, labels)
            self.rows += part.height
        found = {group: one.finish() for group, one in counted.items()}
        return found | {group: raised.amend(found[group]) for group, raised in alerts.items()}

    def _threshold(self, version: int) -> float:
        facts = self._models[str(version)] if version else next(iter(self._models.values()))
        return float(facts["threshold"])

    def _parts(
        self, low: datetime, high: datetime, grouped: Callable[[pl.DataFrame], Iterator[tuple[Group, pl.DataFrame]]]
    ) -> Iterator[tuple[Group, pl.DataFrame]]:
        import polars as pl

        if self._schema is None:
            return
        honest = pl.lit(value=False)
        for version, facts in self._models.items():
            until = pl.lit(parse_time(facts["trained_until"]))
            honest = honest | ((pl.col("model_version") == int(version)) & (pl.col(EVENT_TIME) >= until))
        for rows in labelled_rows(
            [chunk for chunk in self._chunks if chunk.may_hold(EVENT_TIME, low, high)],
            self._labels,
            columns=["model_version", "score", "alert"],
            schema=self._schema,
            low=low,
            high=high,
            governor=self._scope.governor,
        ):
            self._scope.governor.wait()
            rows = rows.filter(honest)
            if rows.height:
                yield from grouped(rows)


@dataclass(frozen=True)
class _Alerts:
    """Alerts as they were raised."""

    hits: int = 0
    alerts: int = 0
    positives: int = 0
    rows: int = 0

    def after(self, flags: Any, labels: Any) -> _Alerts:
        """Return the counts with those of some rows more, both (rows,) boolean."""
        return _Alerts(
            self.hits + int((flags & labels).sum()),
            self.alerts + int(flags.sum()),
            self.positives + int(labels.sum()),
            self.rows + len(labels),
        )

    def amend(self, found: Metrics) -> Metrics:
        """Return metrics with what is of alerts by these."""
        either = self.alerts + self.positives
        return dataclasses.replace(
            found,
            precision=self.hits / self.alerts if self.alerts else None,
            recall=self.hits / self.positives if self.positives else None,
            f1=2 * self.hits / either if either else None,
            alert_rate=self.alerts / self.rows if self.rows else None,
        )


def _by_week(rows: pl.DataFrame) -> Iterator[tuple[Group, pl.DataFrame]]:
    import polars as pl

    weeks = rows.with_columns(_week=pl.col(EVENT_TIME).dt.truncate("1w"))
    for (version, week), part in weeks.group_by("model_version", "_week", maintain_order=True):
        yield Group(int(version), week, week + _WEEK), part


def _monday(value: datetime) -> datetime:
    day = value.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return day - timedelta(days=day.weekday())
