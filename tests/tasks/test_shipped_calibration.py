"""The calibration that comes with the release belongs to the model that comes with it."""

from pathlib import Path

from tasks.calibration import Calibration, shipped_calibration
from tasks.model_version import find_version


def test_bundled_recognition_model_is_calibrated_out_of_the_box(weights_dir: Path, tracking_uri: str) -> None:
    version = find_version("dlib-resnet", weights_dir, tracking_uri)
    shipped = shipped_calibration(version.contract)
    assert shipped is not None, "the contract has changed: evaluate verification again, and ship its calibration"
    calibration = Calibration.model_validate(shipped)
    assert calibration.probability(calibration.thresholds.far_1e_3) > 0.8
    assert calibration.probability(calibration.thresholds.far_1e_1) < 0.2
