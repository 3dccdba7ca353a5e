"""docs/results.md, from what the sections of benchmarks/paper.py kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import mean

from _paper_figures import DRAWINGS, Result, forgetting_figures

INTRODUCTION = """# Results

The settings of the paper (Bourtoule et al., *Machine Unlearning*, IEEE S&P 2021) and this project's own schedules, run
by the product itself: `train`, `unlearn` and `baseline` on a Ray of two cores. One command makes all of it again, or a
section:

```console
$ python benchmarks/paper.py
$ python benchmarks/paper.py --only headline
$ python benchmarks/paper.py --quick --output /tmp/results   # a twentieth of the data, in minutes
```

Each section ends with its command, machine, date and seeds; the rows are in [results/](results) as JSON, and this page
is written from them (`--check` compares). Purchase-shaped data are generated ([data.md](data.md)); the real table may
not be handed on. **Record-visits** are what SISA saves: how often a record goes through forward and backward passes.
**Wall time** of forgetting is the whole command: routing, rewriting slices, retraining, publishing, measuring, purging,
certifying; **training time** is the part in which stages train, added up over actors. Accuracies are of the ensemble
(mean of probabilities) on the test table.
"""


def render(sections: dict[str, Result]) -> str:
    """The document."""
    parts = [INTRODUCTION]
    for name, kept in sections.items():
        parts.append(f"## {kept['title']}\n\n{TEXTS[name](kept['result'])}")
        if name in DRAWINGS:
            parts.append(f"![{kept['title']}](results/{name}.png)\n")
        parts.append(_footer(kept))
    return "\n".join(parts)


def _footer(kept: Result) -> str:
    on = kept["machine"]
    quick = " A twentieth of the data (`--quick`)." if kept["quick"] else ""
    return (
        f"<sub>`{kept['command']}` · {kept['date']} · {on['cores']} cores ({on['cpu']}), {on['memory_gib']} GiB, "
        f"Python {on['python']}, torch {on['torch']} · seed {kept['seed']}.{quick}</sub>\n"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; columns after the first are numbers, to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _points(value: float) -> str:
    return f"{100 * value:+.2f} pp"


def _times(value: float) -> str:
    return f"{value:.2f}×" if value < 100 else f"{value:.0f}×"


# Forgetting, measured


def _forgetting(result: Result) -> str:
    rows, single = result["rows"], mean(row["full"]["accuracy"] for row in result["rows"].values())
    best = rows["equal"]["train"]["accuracy"]
    table = []
    for name, row in rows.items():
        found = forgetting_figures(row)
        accuracy = row["train"]["accuracy"]
        table.append(
            (
                f"`{name}`",
                f"**{_times(found['visits'])}** ({found['least']:.1f} to {found['most']:.1f})",
                _times(found["train"]),
                _times(found["job"]),
                _percent(accuracy),
                _points(accuracy - single),
                _points(accuracy - best),
            )
        )
    one = mean(row["one_shard"]["accuracy"] for row in rows.values())
    draws = len(next(iter(rows.values()))["draws"])
    return (
        f"{result['num_records']:,} records, S = 20, R = 50, e′ = {result['epochs']}; {draws} batches of K = 8 uniform "
        "requests, each against one full retraining (the baseline `full`) in the same run, actors warm for both.\n\n"
        + _table(
            (
                "schedule",
                "record-visits (draws)",
                "training time",
                "wall time of the command",
                "accuracy",
                "to the single model",
                "to `equal`",
            ),
            table,
        )
        + f"\nThe single model has {_percent(single)}, a model on a twentieth of the data {_percent(one)}.\n"
    )


# The cost model


def _tasks(result: Result) -> str:
    names = list(result["rows"][0]["schedules"])
    rows = []
    for row in result["rows"]:
        cells = [f"{found['simulated']:.2f} ({found['theory']:.2f})" for found in row["schedules"].values()]
        rows.append((row["task"], f"{row['num_records']:,}", row["num_requests"], row["paper"], *cells))
    return (
        f"Speed-up of one batch of K uniform requests: the mean of {result['num_draws']:,} simulated draws, and what "
        "the equations say in brackets; nothing is trained.\n\n"
        + _table(("task", "N", "K", "the paper reports", *(f"`{n}`" for n in names)), rows)
    )


def _requests(result: Result) -> str:
    sizes = list(next(iter(result["schedules"].values()))["simulated"])
    rows = []
    for name, found in result["schedules"].items():
        for size in sizes:
            draws = found["measured"][size]
            measured = sum(d["full_visits"] for d in draws) / sum(d["visits"] for d in draws)
            simulated = found["simulated"][size]
            rows.append(
                (
                    f"`{name}`",
                    size,
                    _times(simulated["theory"]),
                    _times(simulated["simulated"]),
                    f"{_times(measured)} ({len(draws)} batches)",
                )
            )
    return (
        "Speed-up over full retraining in record-visits, Purchase, one epoch: by the equations, by simulation, and "
        "counted in runs of the product. A few batches of few requests scatter widely around their mean.\n\n"
        + _table(("schedule", "K", "theory", "simulation", "measured"), rows)
    )


# Accuracy


def _frontier(result: Result) -> str:
    rows = sorted(result["rows"], key=lambda row: -row["train"]["accuracy"])
    return (
        "What a schedule saves and what it costs, MNIST with the 784–128–10 network, S = 20, R = 50, e′ = 15. Among "
        "the rows is the control: no slices and plainly fewer epochs, which forgets cheaper too.\n\n"
        + _table(
            ("way", "accuracy", "speed-up, K = 8", "one request costs, epochs of its shard"),
            (
                (
                    row["name"],
                    _percent(row["train"]["accuracy"]),
                    _times(row["speed_up"]),
                    f"{row['request_epochs']:.2f}",
                )
                for row in rows
            ),
        )
    )


def _slices(result: Result) -> str:
    schedules = result["schedules"]
    counts = [row["num_slices"] for row in next(iter(schedules.values()))]
    return "MNIST, 784–128–10, S = 20, e′ = 15: every schedule has the same training budget.\n\n" + _table(
        ("R", *(f"`{name}`" for name in schedules)),
        (
            (count, *(_percent(rows[i]["train"]["accuracy"]) for rows in schedules.values()))
            for i, count in enumerate(counts)
        ),
    )


def _shards(result: Result) -> str:
    parts = []
    for task, rows in result["tasks"].items():
        parts.append(
            _table(
                (f"{task}: S", "ensemble", "mean constituent", "one model on 1/S of the data"),
                (
                    (
                        row["num_shards"],
                        _percent(row["train"]["accuracy"]),
                        _percent(row["train"]["constituent"]),
                        _percent(row["one_shard"]["accuracy"]),
                    )
                    for row in rows
                ),
            )
        )
    return "Without slices (R = 1); S = 1 is the single model.\n\n" + "\n".join(parts)


def _transfer(result: Result) -> str:
    rows = []
    for row in result["runs"]:
        on = "frozen backbone" if row["name"].startswith("transfer") else "from scratch"
        rows.append(
            (
                on,
                row["num_shards"],
                _percent(row["ensemble"]),
                _percent(row["single"]) if "single" in row else "",
                _points(row["ensemble"] - row["single"]) if "single" in row else "",
                _percent(row["one_shard"]) if "one_shard" in row else "",
                f"{row['train_s']:.0f} s",
                f"{row['unlearn_s']:.0f} s",
                _times(row["retrain_record_visits"] / row["unlearn_record_visits"]),
                row["verified"],
            )
        )
    return (
        f"CIFAR-10, {result['num_records']:,} of the 50,000 training images, {result['num_test']:,} test images: "
        "EfficientNet-Lite0 as trained on ImageNet, frozen, with a trained head ([transfer.md](transfer.md)), and a "
        "small CNN from random weights. Training includes computing the features.\n\n"
        + _table(
            (
                "",
                "S",
                "ensemble",
                "single model",
                "difference",
                "1/S of the data",
                "train",
                "forget four",
                "saved, record-visits",
                "verified",
            ),
            rows,
        )
    )


TEXTS: dict[str, Callable[[Result], str]] = {
    "headline": _forgetting,
    "tasks": _tasks,
    "requests": _requests,
    "frontier": _frontier,
    "slices": _slices,
    "shards": _shards,
    "mnist": _forgetting,
    "transfer": _transfer,
}
