"""What only the compiled build can show."""

from pathlib import Path

import pytest

import actorgrid


@pytest.mark.skipif(not actorgrid.__compiled__, reason="this is the pure build")
def test_it_was_compiled_with_the_flags_of_the_interpreter():
    """Without -DNDEBUG each access of a list or tuple is checked twice, and a check that fails ends the process."""
    (library,) = Path(actorgrid.__file__).parent.parent.glob("actorgrid__mypyc*.so")
    assert b"__assert_fail" not in library.read_bytes()
