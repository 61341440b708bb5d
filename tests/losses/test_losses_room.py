import subprocess
import sys


def test_importing_the_losses_loads_the_core_only():
    heavy = "torchvision timm kornia sklearn plotly tyro rich"
    code = (
        "import sys, marginlab.losses, marginlab.losses.functional; print(*[m for m in "
        f"'{heavy}'.split() if m in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.split() == []
