"""Metrics, through Ray to Prometheus: counted in memory, handed over once a second."""

from __future__ import annotations

from collections import Counter as Tally
from datetime import UTC, datetime

from ray.util.metrics import Counter, Gauge, Histogram

from sisa_ray.execution.served import ServedRun

_LATENCY_S = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0]
_ROWS: list[float] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096]


class RayMeters:
    """What a replica measures, and what the coordinator says of the run."""

    def __init__(self, run: str) -> None:
        self._tags = {"run": run}
        keys = ("run",)
        self._predictions = Counter("sisa_predictions", "Prediction requests answered.", ("run", "status"))
        self._rows = Counter("sisa_predicted_rows", "Rows predicted.", keys)
        self._latency = Histogram(
            "sisa_prediction_latency_s", "Seconds from a request's headers to its answer.", _LATENCY_S, keys
        )
        self._pass_rows = Histogram("sisa_pass_rows", "Rows of callers in a forward pass.", _ROWS, keys)
        self._pass_s = Histogram("sisa_pass_s", "Seconds of a forward pass.", _LATENCY_S, keys)
        self._voters = Gauge("sisa_replica_voters", "Constituents that vote in this replica.", keys)
        self._generation = Gauge(
            "sisa_replica_generation", "Generation that this replica answers from.", keys
        )
        self._requests = Gauge("sisa_requests", "Open unlearning requests in each state.", ("run", "state"))
        self._gauges = {
            name: Gauge(f"sisa_{name}", text, keys)
            for name, text in {
                "requests_closed": "Unlearning requests that are closed.",
                "oldest_request_s": "Age of the oldest open request.",
                "time_to_fence_s": "Of the request fenced last.",
                "time_to_erase_s": "Of the request closed last.",
                "generation": "The published generation.",
                "voters": "Constituents that may vote.",
                "fenced_shards": "Shards that do not answer from their constituent.",
                "replicas": "Replicas that hold a lease.",
                "purge_trouble": "1 where something could not be shown to be gone.",
                "record_visits_saved": "Record-visits that unlearning has saved against retraining.",
                "epsilon_spent": "Privacy budget spent by answers in private mode.",
            }.items()
        }
        self._states: set[str] = set()
        self._statuses: Tally[int] = Tally()
        self._answered: list[tuple[int, float]] = []
        self._passes: list[tuple[int, float]] = []

    def on_answer(self, status: int, rows: int, seconds: float) -> None:
        """A prediction request ended."""
        self._statuses[status] += 1
        self._answered.append((rows, seconds))

    def on_pass(self, rows: int, seconds: float) -> None:
        """A forward pass ended; called from its thread."""
        self._passes.append((rows, seconds))

    def hand_over(self, num_voters: int, generation: int) -> None:
        """Give Ray what was counted."""
        statuses, self._statuses = self._statuses, Tally()
        answered, self._answered = self._answered, []
        passes, self._passes = self._passes, []
        for status, count in statuses.items():
            self._predictions.inc(count, {**self._tags, "status": str(status)})
        if rows := sum(rows for rows, _ in answered):
            self._rows.inc(rows, self._tags)
        for _, seconds in answered:
            self._latency.observe(seconds, self._tags)
        for rows, seconds in passes:
            self._pass_rows.observe(rows, self._tags)
            self._pass_s.observe(seconds, self._tags)
        self._voters.set(num_voters, self._tags)
        self._generation.set(generation, self._tags)

    def hand_over_run(self, run: ServedRun) -> None:
        """Give Ray what the coordinator said."""
        tags = {"run": run.name}
        self._states |= run.requests_by_state.keys()
        for state in self._states:
            self._requests.set(run.requests_by_state.get(state, 0), {**tags, "state": state})
        oldest = run.oldest_accepted_at
        spent, _, parts = run.epsilon_spent.partition("/")
        values = {
            "requests_closed": run.num_closed,
            "oldest_request_s": 0.0 if oldest is None else (datetime.now(UTC) - oldest).total_seconds(),
            "time_to_fence_s": run.last_fence_s,
            "time_to_erase_s": run.last_erase_s,
            "generation": run.generation,
            "voters": run.num_voters,
            "fenced_shards": len(run.fenced),
            "replicas": run.num_replicas,
            "purge_trouble": int(run.purge_trouble is not None),
            "record_visits_saved": run.full_retrain_record_visits - run.record_visits,
            "epsilon_spent": int(spent) / int(parts or 1),
        }
        for name, value in values.items():
            if value is not None:
                self._gauges[name].set(value, tags)
