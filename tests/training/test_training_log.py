"""What fit notes down of each epoch, and the page that draws it."""

import math
import sys
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from voken.cli import app
from voken.errors import DataError, EmptyDataError
from voken.training import training_log
from voken.training.training_log import TrainingLog, read_log
from voken_lab.pages.training_curves import curves_page


def test_a_log_is_read_back_and_continued(tmp_path, monkeypatch):
    monkeypatch.setattr(training_log, "find_spec", lambda name: None)
    model = tmp_path / "m"
    with TrainingLog(model, continues=False) as log:
        log("a <b>, c", 1, 2.5, 0.25)
        log("a <b>, c", 2, 1.5, None)
    assert (tmp_path / "m.training.csv").read_text().splitlines()[:2] == [
        "stage,epoch,loss,validation,seconds",
        '"a <b>, c",1,2.5,0.25,0.0',
    ]
    with TrainingLog(model, continues=True) as log:
        log("a <b>, c", 2, 1.25, 0.5)  # trained again
        log("d", 1, math.nan, 0.75)
    entries = [replace(entry, seconds=0.0) for entry in read_log(log.path)]
    assert [(one.stage, one.epoch, one.loss, one.validation) for one in entries[:2]] == [
        ("a <b>, c", 1, 2.5, 0.25),
        ("a <b>, c", 2, 1.25, 0.5),
    ]
    assert math.isnan(entries[2].loss)
    TrainingLog(model, continues=False)
    assert not log.path.exists()
    assert not (tmp_path / "m.tensorboard").exists()


def test_tensorboard_reads_the_events(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with TrainingLog(tmp_path / "m", continues=False) as log:
        for epoch in (1, 2, 3):
            log("generator, L_gen", epoch, 1 / epoch, epoch / 10)
    events = accumulator.EventAccumulator(str(tmp_path / "m.tensorboard")).Reload()
    for tag, expected in (("loss", [1, 1 / 2, 1 / 3]), ("validation", [0.1, 0.2, 0.3])):
        scalars = events.Scalars(f"generator, L_gen/{tag}")
        assert [one.step for one in scalars] == [1, 2, 3]
        assert [one.value for one in scalars] == pytest.approx(expected)


def test_a_file_that_is_no_log_is_named_with_its_line(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,b\n")
    with pytest.raises(DataError, match=r"x\.csv, line 1: this is no log of voken fit"):
        read_log(path)
    path.write_text("stage,epoch,loss,validation,seconds\na,1,2,,3\na,two,2,,3\n")
    with pytest.raises(DataError, match=r"x\.csv, line 3: this is no epoch"):
        read_log(path)
    path.write_text("stage,epoch,loss,validation,seconds\n")
    with pytest.raises(EmptyDataError, match="no epoch was trained"):
        curves_page(path)


def test_the_page_has_two_charts_a_stage_and_the_best_epochs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [f"<i>{epoch % 2},{epoch},{1 / epoch},{0.5 - abs(epoch - 4) / 10},{epoch}.0" for epoch in range(1, 8)]
    (tmp_path / "m.training.csv").write_text("\n".join(["stage,epoch,loss,validation,seconds", *lines]) + "\n")
    run = CliRunner().invoke(app, ["curves", "m.training.csv"])
    assert run.exit_code == 0, run.output
    page = (tmp_path / "curves.html").read_text()
    assert page.count("<svg class=") == 4
    assert "<i>0" not in page
    assert "lowest 0.1429 at 7" in page
    assert '<td class="">4</td>' in page
    assert "Training of m" in page
    wrong = CliRunner().invoke(app, ["curves", "none.csv"])
    assert wrong.exit_code == 1
    assert "none.csv: cannot be read" in wrong.stderr


def test_without_tensorboard_nothing_of_it_is_imported(tmp_path, monkeypatch):
    monkeypatch.setattr(training_log, "find_spec", lambda name: None)
    for name in ("torch.utils.tensorboard", "tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    with TrainingLog(tmp_path / "m", continues=False) as log:
        log("a", 1, 1.0, 1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["m.training.csv"]
