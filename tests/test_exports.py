"""The public names, their documentation, and what importing them costs."""

import dataclasses
import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import actorgrid
from actorgrid import grid
from actorgrid.errors import SettingsError
from actorgrid.settings import ClientSettings, HostSettings, WireSettings

FIXED = {"actor", "read", "blocking", "reentrant", "Map", "List", "current", "connect", "connect_sync"}
SETTINGS = [WireSettings, ClientSettings, HostSettings]


def modules():
    for found in pkgutil.walk_packages(actorgrid.__path__, "actorgrid."):
        if not found.name.endswith("__main__"):
            yield found.name


def test_the_names_that_applications_use_are_there():
    assert set(grid.__all__) >= FIXED | {"offload"}
    for name in grid.__all__:
        assert getattr(grid, name).__doc__, name


@pytest.mark.pure  # compiled functions have lost their docstrings
@pytest.mark.parametrize("name", list(modules()))
def test_everything_public_says_what_it_is_for(name):
    module = importlib.import_module(name)
    if module.__file__.endswith("__init__.py") and not inspect.getsource(module).strip():
        return
    assert module.__doc__, name
    for key, value in vars(module).items():
        if key.startswith("_") or getattr(value, "__module__", None) != name or not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        assert value.__doc__, f"{name}.{key}"


def test_importing_the_client_starts_nothing_and_loads_no_server_dependency():
    script = (
        "import sys, threading; import actorgrid; from actorgrid import grid; import actorgrid.errors\n"
        "heavy = {'ray', 'rocksdict', 'uvloop', 'kubernetes', 'typer', 'rich', 'psutil'} & set(sys.modules)\n"
        "assert not heavy, heavy\nassert threading.active_count() == 1"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize("cls", SETTINGS)
def test_every_setting_has_a_range_a_reason_and_where_it_is_a_quantity_a_unit(cls):
    for field in dataclasses.fields(cls):
        assert field.metadata["low"] <= field.default <= field.metadata["high"], field.name
        assert len(field.metadata["why"]) > 8, field.name
        if isinstance(field.default, float) or any(word in field.name for word in ("timeout", "bytes", "retention", "idle")):
            assert field.name.endswith("_s") or "bytes" in field.name, field.name


@pytest.mark.parametrize("cls", SETTINGS)
def test_settings_out_of_range_are_all_named_at_once(cls):
    fields = dataclasses.fields(cls)
    with pytest.raises(SettingsError) as refused:
        cls(**{field.name: -5 for field in fields})
    assert len(refused.value.problems) == len(fields)
    for field, problem in zip(fields, refused.value.problems, strict=True):
        assert field.name in problem
        assert "-5" in problem


def test_the_environment_sets_and_every_bad_variable_is_named_at_once():
    assert HostSettings.from_environment({"ACTORGRID_ACTOR_QUEUE_MAX": "7", "ACTORGRID_OTHER": "x"}).actor_queue_max == 7
    assert HostSettings.from_environment({"ACTORGRID_ACTOR_QUEUE_MAX": "7"}, actor_queue_max=9).actor_queue_max == 9
    bad = {"ACTORGRID_ACTOR_QUEUE_MAX": "many", "ACTORGRID_ACTIVATION_IDLE_S": "long", "ACTORGRID_HOST_QUEUE_MAX": "1"}
    with pytest.raises(SettingsError) as refused:
        HostSettings.from_environment(bad)
    text = str(refused.value)
    for word in ("ACTORGRID_ACTOR_QUEUE_MAX", "many", "ACTORGRID_ACTIVATION_IDLE_S", "long", "host_queue_max"):
        assert word in text.replace("HOST_QUEUE_MAX", "host_queue_max"), word


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_setting_that_is_no_finite_number_is_refused(value):
    with pytest.raises(SettingsError, match="activation_idle_s"):
        HostSettings.from_environment({"ACTORGRID_ACTIVATION_IDLE_S": value})
    with pytest.raises(SettingsError):
        HostSettings(actor_queue_max=True)
    with pytest.raises(SettingsError):
        HostSettings(actor_queue_max="7")
