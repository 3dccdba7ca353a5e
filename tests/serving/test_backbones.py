"""A service whose recipe has a frozen backbone: it runs once for a row, and each caller's rows by themselves."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sisa_ray.core.errors import RunConflict
from sisa_ray.core.identity import BackboneIdentity
from sisa_ray.core.view import next_view
from sisa_ray.execution.opening import existing_run
from sisa_ray.execution.predict import predict as predict_table
from sisa_ray.serving.electorate import ModelLoader
from tests.execution import backbones
from tests.execution.coordinators import running, trained
from tests.serving.services import ROWS, Here, forget, predict, reaches, serving
from tests.support.inline import InlineWorkers

FROZEN = {"class": "tests.execution.backbones.Frozen", "args": {}}


def test_answers_are_those_of_a_prediction_and_cost_one_pass_of_the_backbone(tmp_path: Path) -> None:
    config = trained(tmp_path, recipe=FROZEN)
    table, out = tmp_path / "rows.parquet", tmp_path / "out.parquet"
    kind = pa.list_(pa.float32(), 8)
    pq.write_table(pa.table({"x": pa.array([row["x"] for row in ROWS], kind)}), table)
    predict_table(config, str(table), out=str(out), rule="mean", new_workers=InlineWorkers)
    expected = pq.read_table(out)

    async def story() -> None:
        with running(config) as one:
            async with serving(config, Here(one), rows_per_pass=[8, 32]) as service:
                await predict(service, ROWS, aggregation="mean")  # what only the first pass needs
                backbones.CALLS.clear()
                said = (await predict(service, ROWS, aggregation="mean", probabilities=True)).json
                assert backbones.CALLS == [4] * 5  # 20 rows, and two constituents
                assert said["labels"] == expected["label"].to_pylist()
                for mine, other in zip(
                    said["probabilities"], expected["probabilities"].to_pylist(), strict=True
                ):
                    assert mine == pytest.approx(other, abs=1e-6)
                alone = [(await predict(service, [row], probabilities=True)).json for row in ROWS]
                together = await asyncio.gather(
                    *(predict(service, [row], probabilities=True) for row in ROWS)
                )
                assert [answer.json["probabilities"] for answer in together] == [
                    a["probabilities"] for a in alone
                ]
                await reaches(service, await forget(service, "p3"), "certified")
                assert (await predict(service, ROWS)).json["view"]["generation"] == 2

    asyncio.run(story())


def test_a_replica_with_another_backbone_refuses_to_load(tmp_path: Path) -> None:
    config = trained(tmp_path, recipe=FROZEN)
    run = existing_run(config)
    other = BackboneIdentity(weights="0" * 64, batch_size=4, distributions={})
    spec = run.spec.model_copy(update={"backbone": other})
    with run.lock:
        view = next_view(run.spec, run.state, {})
    assert view is not None
    with pytest.raises(RunConflict, match="its backbone here is not the run's"):
        ModelLoader(spec, run.store, (0, 1)).load(view, None)
