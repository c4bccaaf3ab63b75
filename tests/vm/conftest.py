"""What the stories stand on: one running machine for all, one bench for each kind of board."""

import pytest

from vm import bench as benches
from vm.boards import CH340, MEGA2560, PRUSA, SKR
from vm.machine import Machine, NotHereError, built


@pytest.fixture(scope="session")
def machine():
    """A running guest with the package in it."""
    try:
        image = built()
    except NotHereError as e:
        pytest.skip(str(e))
    with Machine(image) as running:
        benches.copy_package(running)
        yield running


@pytest.fixture(scope="session", params=[MEGA2560, CH340, SKR, PRUSA], ids=lambda kind: kind.name)
def shared(machine, request):
    """A service and an OctoPrint that go on from story to story; pytest sorts the stories by it."""
    with benches.Bench(machine, request.param) as bench:
        yield bench


@pytest.fixture
def bench(shared):
    """The shared bench, cleared after each story; a failed one tells what happened."""
    yield shared
    shared.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Add what service, OctoPrint and board have said to the report of a failure."""
    report = yield
    bench = getattr(item, "funcargs", {}).get("bench")
    if call.when == "call" and report.failed and bench is not None:
        report.sections.append(("the bench", bench.account()))
    return report
