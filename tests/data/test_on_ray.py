"""What needs no cluster; what does is in test_s3.py."""

import sys

import fsspec
import pytest

from vistok.data.encode import run_plan
from vistok.data.encode_shard import Schedule
from vistok.data.on_ray import OnRay
from vistok.data.plan import EncodeSettings, make_plan


def test_without_ray_the_error_names_the_extra(discrete, photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    plan = make_plan(discrete, photos, EncodeSettings(threads=1))
    with pytest.raises(ImportError, match=r"pip install 'vistok\[ray\]'"):
        run_plan(plan, discrete, tmp_path / "store", executor=OnRay())


def test_resources_and_places_that_make_no_sense_are_refused(discrete, photos):
    with pytest.raises(ValueError, match="expected num_gpus >= 0, got -1"):
        OnRay(num_gpus=-1)
    plan = make_plan(discrete, photos, EncodeSettings(threads=1))
    with pytest.raises(ValueError, match="memory://only/here: workers on a cluster cannot write there"):
        run_plan(plan, discrete, "memory://only/here", Schedule(workers=2), executor=OnRay())
    fsspec.filesystem("memory").rm("/only", recursive=True)
