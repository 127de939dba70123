"""A short run of `fuzz_folders.py`."""

import pytest

import fuzz_folders


@pytest.mark.slow
def test_changed_folders_are_used_or_refused_by_name(tmp_path):
    outcome = fuzz_folders.run(fuzz_folders.make_original(tmp_path / "original"), range(60), seed=0)
    assert not outcome.failures
    assert outcome.ends["used"] > 5
    assert outcome.ends["CorruptArtifactError"] > 20
    assert sum(outcome.files.values()) >= 60
