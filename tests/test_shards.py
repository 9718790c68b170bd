"""A dataset evaluated in parts gives the metrics of the whole, to the last bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from zooport.export_core import pipeline, sharding
from zooport.export_core.evaluation.costs import is_cost, without_costs
from zooport.export_core.evaluation.prediction_files import read_predictions, write_predictions
from zooport.export_core.evaluation.tasks import ImagePrediction
from zooport.export_core.failures import Stage
from zooport.export_core.shards import Shard, split
from zooport.tests.artifact_processes import SCRIPT, TRACE
from zooport.tests.test_pipeline import ignore, source_of

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")

IMAGES = 5


@pytest.mark.parametrize("images", [1, 4, 5, 249, 250, 251, 5000])
@pytest.mark.parametrize("size", [1, 2, 250, 9999])
def test_every_image_is_in_one_shard_and_shards_are_about_equal(images: int, size: int) -> None:
    shards = split(images, size)
    assert [image for shard in shards for image in range(shard.start, shard.stop)] == list(range(images))
    sizes = [shard.stop - shard.start for shard in shards]
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    assert [(shard.number, shard.of) for shard in shards] == [
        (number, len(shards)) for number in range(1, len(shards) + 1)
    ]


def test_predictions_travel_to_the_last_bit(tmp_path: Path) -> None:
    values = {"bbox": [{"score": 1 / 3, "bbox": [1e-300, 2.0**70, 0.1, -0.0]}], "segm": [{"counts": "0`\\"}]}
    predictions = [ImagePrediction(7, values), ImagePrediction("a/b", {"bbox": []})]
    write_predictions(tmp_path / "one.gz", predictions)
    assert repr(list(read_predictions([tmp_path / "one.gz"]))) == repr(predictions)
    assert [path.name for path in tmp_path.iterdir()] == ["one.gz"]


# Between them the tasks of all metrics but those of proposals: boxes, masks, labels, panoptic, keypoints.
@pytest.mark.parametrize("model", ["panoptic_fpn", "keypoint_rcnn_fpn"])
def test_the_eager_model_measures_the_same_in_parts(tmp_path: Path, model: str) -> None:
    checkpoint, dataset = source_of(model, limit=IMAGES)
    shards = split(IMAGES, 2)
    for shard in reversed(shards):
        sharding.predict_shard(checkpoint, dataset, shard, tmp_path, ignore)

    merged = sharding.merge_shards(checkpoint, dataset, shards, tmp_path, ignore)

    whole = pipeline.evaluate_eager(checkpoint, dataset, ignore)
    assert json.dumps(without_costs(merged)) == json.dumps(without_costs(whole))
    assert {name for name in merged if is_cost(name)} == {name for name in whole if is_cost(name)}
    assert merged["bbox/AP"] > 1


@pytest.mark.parametrize("format_", [TRACE, SCRIPT])
def test_an_artifact_measures_the_same_in_parts_and_once_its_shards_are_there(
    tmp_path: Path, format_: str
) -> None:
    checkpoint, dataset = source_of("mask_rcnn_fpn", limit=IMAGES)
    pipeline.export_stage(checkpoint, format_, {}, dataset, None, tmp_path, ignore)
    assert pipeline.verify_stage(tmp_path, None, ignore) == {}
    shards, folder = split(IMAGES, 2), tmp_path / pipeline.HANDOVER / "shards"
    stages: list[Stage] = []
    for shard in shards[1:]:
        sharding.predict_shard(tmp_path, dataset, shard, folder, stages.append)
    with pytest.raises(OSError, match="shard-1-of-3"):
        sharding.merge_shards(tmp_path, dataset, shards, folder, ignore)
    sharding.predict_shard(tmp_path, dataset, shards[0], folder, stages.append)

    merged = sharding.merge_shards(tmp_path, dataset, shards, folder, ignore)

    assert set(stages) == {Stage.EVALUATE}
    whole = pipeline.verify_stage(tmp_path, dataset, ignore)
    assert json.dumps(without_costs(merged)) == json.dumps(without_costs(whole))
    assert merged["segm/AP"] > 1


def test_shards_that_overlap_or_lack_images_give_no_metrics(tmp_path: Path) -> None:
    checkpoint, dataset = source_of("retinanet_fpn", limit=3)
    shards = (Shard(1, 2, 0, 2), Shard(2, 2, 1, 3))
    for shard in shards:
        sharding.predict_shard(checkpoint, dataset, shard, tmp_path, ignore)
    with pytest.raises(ValueError, match="twice"):
        sharding.merge_shards(checkpoint, dataset, shards, tmp_path, ignore)
    shards = (shards[0], replace(shards[1], start=2))
    sharding.predict_shard(checkpoint, dataset, shards[1], tmp_path, ignore)
    with pytest.raises(ValueError, match="3 images for a dataset of 4"):
        sharding.merge_shards(checkpoint, replace(dataset, limit=4), shards, tmp_path, ignore)
