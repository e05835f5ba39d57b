"""Settings of the whole test run: nothing random, nothing left behind, and in CI nothing skipped."""

import os

import pytest
from hypothesis import settings

# One network call can take long on a busy machine, hence no deadline.
settings.register_profile("book", deadline=None, derandomize=True, database=None)
settings.load_profile("book")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """With CI=true, let a skipped test fail the run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") == "true" and reporter is not None and reporter.stats.get("skipped"):
        reporter.write_line("tests were skipped, and CI skips none", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
