import subprocess
import sys

import pytest

import vistok


@pytest.mark.slow
def test_this_installation_is_well() -> None:
    # In a process of its own, because it imports every library, some of which warn.
    program = "import sys; from vistok.cli.main import main; sys.exit(main(['doctor']))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for word in (
        vistok.__version__,
        "torch",
        "compiler",
        "op nearest_code",
        "CUDA",
        "weights vq_nano",
        "weights kl_nano",
        "all is well",
    ):
        assert word in done.stdout


@pytest.mark.slow
def test_a_broken_library_is_named_with_its_remedy() -> None:
    # None in sys.modules makes an import fail as if the library were not there.
    program = (
        "import sys; sys.modules['open_clip'] = None\nfrom vistok.cli.main import main; sys.exit(main(['doctor']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    text = " ".join(done.stdout.split())
    assert "BROKEN open-clip-torch" in text and "pip install" in text and "need attention" in text
