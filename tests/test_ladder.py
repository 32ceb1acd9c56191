"""The benchmark that compares all models: it runs, on small digits, and goes on where it was stopped."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "ladder.py"


@pytest.fixture(scope="module")
def ladder():
    pytest.importorskip("sklearn")
    pytest.importorskip("safetensors")
    spec = importlib.util.spec_from_file_location("ladder", SCRIPT)
    module = sys.modules["ladder"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_row_has_epochs_for_its_stages_and_targets_in_its_columns(ladder):
    for name, row in ladder.ROWS.items():
        model = row.make((1, 28, 28))
        stages = model.stages() if hasattr(model, "stages") else [model]
        assert len(stages) == len(row.epochs), name
        assert row.targets.keys() <= ladder.COLUMNS.keys(), name


@pytest.mark.seconds(12)
def test_a_row_goes_on_where_it_was_stopped_and_measures_what_its_model_defines(
    ladder, tmp_path, monkeypatch
):
    monkeypatch.setattr(ladder, "SAMPLES", 20)
    monkeypatch.setattr(ladder, "IMAGES", 30)
    plain, epochs = ladder.fit, []

    def fit(model, *rest, **options):
        if len(epochs) == 2:
            epochs.append("stopped")
            raise KeyboardInterrupt
        epochs.append(options["epochs"])
        return plain(model, *rest, **options)

    monkeypatch.setattr(ladder, "fit", fit)
    folders = ["--folder", str(tmp_path / "state"), "--results", str(tmp_path)]
    call = ["two-stage", "--data", "digits", "--scale", "0.1", *folders]
    with pytest.raises(KeyboardInterrupt):
        ladder.main(call)
    assert not (tmp_path / "two-stage.json").exists()
    ladder.main(call)
    assert epochs == [1, 2, "stopped", 2, 1, 2, 3, 4]  # the second of the first stage is loaded
    result = json.loads((tmp_path / "two-stage.json").read_text())
    defined = {name for name, value in result["columns"].items() if value is not None}
    assert defined == {
        "frechet",
        "class_kl",
        "confidence",
        "aggregate_kl",
        "kurtosis",
        "probe",
        "minutes",
        "samples",
    }
    ladder.main(call)
    assert len(epochs) == 8  # there is nothing left to do


def test_a_target_that_is_missed_says_by_how_much(ladder):
    row = ladder.ROWS["gan"]
    assert ladder.missed(row, {"frechet": 9.0, "class_kl": 0.01}) == {}
    assert ladder.missed(row, {"frechet": 12.0, "class_kl": 0.01}) == {
        "frechet": "12 is not between 0 and 10: by 2"
    }
    assert "frechet" in ladder.missed(row, {"class_kl": 0.01})
