"""The planted faults still fit the code. (Planting them takes minutes: `python tests/plant_faults.py`.)"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from faults import AREAS, FAULTS, Fault, kind_of
from plant_faults import patched

pytestmark = pytest.mark.host

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "minisimclr"


@pytest.mark.parametrize("file", sorted({fault.file for fault in FAULTS}))
def test_a_fault_fits_its_file_once_and_leaves_python(file: str) -> None:
    text = (PACKAGE / file).read_text()
    for fault in FAULTS:
        if fault.file == file:
            planted = patched(text, fault)
            assert planted != text, fault
            if file.endswith(".py"):
                compile(planted, f"{file} with {fault.name}", "exec")
            assert all((TESTS / f"test_{name}.py").exists() for name in fault.tests.split()), fault


def test_there_are_enough_faults_of_every_area_each_with_a_name_of_its_own() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 40
    counts = Counter(fault.about for fault in FAULTS)
    assert counts.keys() == set(AREAS)
    assert min(counts.values()) >= 4


def test_a_fault_that_does_not_fit_exactly_once_is_refused() -> None:
    fault = Fault("f", "loss", "a.py", "x = 1", "x = 2", "ntxent")
    assert patched("x = 1  # one\ny = 1\n", fault) == "x = 2  # one\ny = 1\n"
    for text in ("", "x = 1\nx = 1\n"):
        with pytest.raises(ValueError, match="expected once"):
            patched(text, fault)


def test_the_kind_of_a_test_is_what_it_holds_the_code_against() -> None:
    assert kind_of("tests/test_ops.py::test_gradient_passes_the_three_checks[add-0]") == "differences"
    assert kind_of("tests/test_ops.py::test_value_is_the_reference[three_checks]") == "oracle"
    assert kind_of("tests/test_ntxent.py::TestClosedForms::test_all_rows_equal[tiled]") == "closed form"
    assert kind_of("tests/test_autograd.py::test_a_deep_graph_can_be_dropped") == "structure of autograd"
