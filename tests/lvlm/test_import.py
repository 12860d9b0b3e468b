"""`vistok.lvlm` is there when it is asked for, and says what it needs."""

import subprocess
import sys

import pytest


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_it_is_an_attribute_of_vistok_and_loaded_on_demand() -> None:
    code = "import sys, vistok; assert 'transformers' not in sys.modules; print(vistok.lvlm.prune.__name__)"
    assert run(code).stdout == "prune\n"


@pytest.mark.slow
def test_without_transformers_it_names_the_extra() -> None:
    done = run("import sys; sys.modules['transformers'] = None; import vistok; vistok.lvlm")
    assert done.returncode and "pip install 'vistok[lvlm]'" in done.stderr
