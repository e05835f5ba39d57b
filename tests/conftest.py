"""Settings of the whole test run: nothing random, nothing left behind, and in CI nothing skipped.

What `make book` built, and Chromium, are reached through the fixtures `built` and `chromium` alone: whoever asks for
one carries its marker, so that `-m "not site and not browser"` selects what a bare clone can run.
"""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

BUILD = Path(__file__).resolve().parents[1] / "build"
MARKERS = {"built": "site", "chromium": "browser"}  # a fixture, and the marker of each test that asks for it

# One network call can take long on a busy machine, hence no deadline.
settings.register_profile("book", deadline=None, derandomize=True, database=None)
settings.load_profile("book")


@pytest.fixture(scope="session")
def built():
    """The folder in which `make book` left `html` and `executed`."""
    if not (BUILD / "html").is_dir() or not (BUILD / "executed").is_dir():
        pytest.skip("no site: make book")
    return BUILD


@pytest.fixture(scope="session")
def chromium():
    """The path of a Chromium; playwright downloads none here."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium: apt install chromium")
    return path


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(items):
    """Mark each test by the fixtures that it asks for, itself or through others."""
    for item in items:
        for fixture in MARKERS.keys() & set(item.fixturenames):
            item.add_marker(MARKERS[fixture])


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """With CI=true, let a skipped test fail the run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") == "true" and reporter is not None and reporter.stats.get("skipped"):
        reporter.write_line("tests were skipped, and CI skips none", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
