"""Compiles the hot modules when the package is built with ``ACTORGRID_COMPILE=1``; without it the wheel is pure Python.

The compiler is mypyc, and its source is the same Python: nothing is written twice, and a module that is not compiled works as ever.
What may be compiled is listed here and nowhere else. Left out is what mypyc cannot do right: modules with classes of msgspec or of C
(``Struct``, ``asyncio.Future``), whose memory layout is not its to lay out, and the surface that applications call with arguments of
any type, which answer a wrong one with errors of their own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HOT = (
    "actorgrid/actor/fields.py",
    "actorgrid/actor/methods.py",
    "actorgrid/client/batch.py",
    "actorgrid/client/caller.py",
    "actorgrid/client/connection.py",
    "actorgrid/client/deadlines.py",
    "actorgrid/client/lane.py",
    "actorgrid/client/router.py",
    "actorgrid/host/activation.py",
    "actorgrid/host/admission.py",
    "actorgrid/host/batch.py",
    "actorgrid/host/commit.py",
    "actorgrid/host/load.py",
    "actorgrid/host/partition.py",
    "actorgrid/host/peers.py",
    "actorgrid/host/replica_shell.py",
    "actorgrid/host/replicas.py",
    "actorgrid/host/residents.py",
    "actorgrid/host/runner.py",
    "actorgrid/host/server.py",
    "actorgrid/host/turn.py",
    "actorgrid/replication/elections.py",
    "actorgrid/replication/feeding.py",
    "actorgrid/replication/following.py",
    "actorgrid/replication/lineage.py",
    "actorgrid/replication/log_index.py",
    "actorgrid/replication/membership.py",
    "actorgrid/replication/office.py",
    "actorgrid/replication/progress.py",
    "actorgrid/replication/promises.py",
    "actorgrid/replication/replica.py",
    "actorgrid/replication/sessions.py",
    "actorgrid/replication/standing.py",
    "actorgrid/storage/database.py",
    "actorgrid/storage/keys.py",
    "actorgrid/storage/log.py",
    "actorgrid/storage/replica_store.py",
    "actorgrid/storage/size.py",
    "actorgrid/storage/wal.py",
    "actorgrid/wire/framing.py",
)
PACKAGES = ("actorgrid", "placement")

_SETUP = """
from mypyc.build import mypycify
from setuptools import setup

modules = mypycify(
    ["--strict", "--no-warn-unused-ignores", "--ignore-missing-imports", *{modules!r}],
    opt_level="3",
    debug_level="0",
    group_name="actorgrid",
)
for module in modules:
    # They are one library: without the option every call between them goes by way of a table, and none is inlined. (CFLAGS would take the
    # place of the interpreter's own flags, -DNDEBUG among them.)
    module.extra_compile_args.append("-fno-semantic-interposition")
setup(name="actorgrid-hot", packages=[], ext_modules=modules)
"""


class CompileHook(BuildHookInterface[Any]):
    """The build hook; hatchling finds it by the name of this file."""

    PLUGIN_NAME = "custom"

    def _is_wanted(self) -> bool:
        return os.environ.get("ACTORGRID_COMPILE", "") == "1" and self.target_name == "wheel"

    def dependencies(self) -> list[str]:
        return ["mypy>=2.4,<2.5", "setuptools>=77", "msgspec>=0.19", "xxhash>=3.4"] if self._is_wanted() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile in a copy, and add what comes out to the wheel.

        :raises RuntimeError: the compiler failed; its output is printed
        """
        if not self._is_wanted():
            return
        if version == "editable":
            raise RuntimeError(
                "ACTORGRID_COMPILE=1 cannot be combined with an editable install: the compiled modules would hide your changes"
            )
        self._directory = Path(tempfile.mkdtemp(prefix="actorgrid-compile-"))
        try:
            self._compile(build_data)
        except BaseException:  # the frontend calls `finalize` only after a success
            shutil.rmtree(self._directory, ignore_errors=True)
            raise
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def _compile(self, build_data: dict[str, Any]) -> None:
        for package in PACKAGES:
            shutil.copytree(Path(self.root) / package, self._directory / package, ignore=shutil.ignore_patterns("__pycache__"))
        (self._directory / "setup.py").write_text(_SETUP.format(modules=list(HOT)))
        done = subprocess.run(
            [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
            cwd=self._directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=1200,
        )
        # mypyc makes a list of ``(x for x in y)``, which is another thing wherever somebody asks for the next one, or y is long.
        changed = [line for line in done.stdout.splitlines() if "Treating generator comprehension as list" in line]
        if changed:
            raise RuntimeError("write a list or a function with yield instead:\n" + "\n".join(changed))
        if done.returncode:
            self.app.display_error(done.stdout[-20_000:])
            raise RuntimeError(
                f"the hot modules could not be compiled (exit code {done.returncode}); without ACTORGRID_COMPILE=1 they need not be"
            )
        found = {built: built.relative_to(self._directory) for built in sorted(self._directory.rglob("*.so"))}
        modules = {str(built): str(place) for built, place in found.items() if place.parts[0] != "build"}
        if len(modules) != len(HOT) + 1:
            raise RuntimeError(
                f"expected {len(HOT)} compiled modules and what they share, found {len(modules)}: {sorted(modules.values())}"
            )
        build_data["force_include"].update(modules)

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Leave nothing behind."""
        if self._is_wanted():
            shutil.rmtree(self._directory, ignore_errors=True)
