"""The bare package is the client: nothing of the server may be needed to import it, nor loaded by it."""

import subprocess
import sys

import pytest

CHECK = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"ray", "rocksdict", "uvloop", "kubernetes", "typer", "rich", "psutil", "typing_extensions"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import actorgrid
from actorgrid import grid
assert sorted(actorgrid.__all__) == ["__compiled__", "__version__", "grid"], actorgrid.__all__
missing = [name for name in grid.__all__ if not hasattr(grid, name)]
assert not missing, missing
ours = {"__main__", "actorgrid", "msgspec", "xxhash", "sitecustomize"}  # the last one is the distribution's
loaded = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names) - ours
print(sorted(name for name in loaded if not name.startswith("_")))
"""


@pytest.mark.pure  # of a compiled build the runtime of the compiler comes, too
def test_importing_the_client_needs_msgspec_and_xxhash_only():
    done = subprocess.run([sys.executable, "-W", "error", "-c", CHECK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
