"""What no page and no module shows: workflows, templates, the dev container, the citation, one version, one address."""

import ast
import json
import os
import re
import shutil
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest
import yaml
from test_copyable import brought_by, third_party
from test_notebooks import NOTEBOOKS, code_cells, repository

import ebmlib

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
WRITES = {"pages.yml": {"publish": {"pages": "write", "id-token": "write"}}}  # what a job may do beyond reading


def problems(name, text):
    """Yield what is wrong with a workflow: rights, actions that are not pinned, jobs without an end."""
    workflow = yaml.safe_load(text)
    if workflow.get("permissions") != {"contents": "read"}:
        yield "the workflow may do more than read"
    for action, comment in re.findall(r"uses:\s*(\S+)(.*)", text):
        if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action) or not re.fullmatch(r" # v\d+\.\d+\.\d+", comment):
            yield f"{action} is not pinned by commit with its version beside it"
    for job_name, job in workflow["jobs"].items():
        if job.get("permissions") != WRITES.get(name, {}).get(job_name):
            yield f"job {job_name} has rights that it does not need, or lacks some"
        if "timeout-minutes" not in job:
            yield f"job {job_name} may run for hours"
        for step in job["steps"]:
            if "checkout@" in step.get("uses", "") and step.get("with", {}).get("persist-credentials") is not False:
                yield f"job {job_name} keeps the credentials of its checkout"
            if re.search(r"\$\{\{\s*github\.(event|head_ref)", step.get("run", "")):
                yield f"job {job_name} runs text that a stranger wrote"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_are_pinned_and_may_only_read(path):
    assert list(problems(path.name, path.read_text("utf-8"))) == []


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        ("  contents: read\n", "  contents: write\n", "more than read"),
        ("checkout@08c6903cd8c0fde910a37f88322edcfb5dd907a8 # v5.0.0", "checkout@v5", "not pinned"),
        ("    timeout-minutes: 60\n", "", "for hours"),
        ("    timeout-minutes: 60\n", "    timeout-minutes: 60\n    permissions:\n      pages: write\n", "rights"),
        ("persist-credentials: false", "persist-credentials: true", "keeps the credentials"),
        ("run: .ci/run", "run: echo ${{ github.event.pull_request.title }}", "a stranger wrote"),
    ],
)
def test_a_broken_workflow_is_found(good, bad, message):
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8")
    assert good in text
    assert any(message in problem for problem in problems("ci.yml", text.replace(good, bad)))


def test_the_site_is_published_after_its_tests():
    publish = yaml.safe_load((ROOT / ".github" / "workflows" / "pages.yml").read_text("utf-8"))["jobs"]
    assert publish["publish"]["needs"] == "build"
    steps = [step.get("run") or step.get("uses", "").partition("@")[0] for step in publish["build"]["steps"]]
    assert steps.index(".ci/run") < steps.index("actions/upload-pages-artifact")


def test_a_commit_runs_once():
    """A branch with a pull request would else run for the push and again for the request."""
    for path in WORKFLOWS:
        events = yaml.safe_load(path.read_text("utf-8"))[True]  # YAML reads `on` as true
        if "push" in events:
            assert events["push"] == {"branches": ["main"]}, path.name


HOLLOW = """
import pytest

@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    return True
"""


def units(folder, *replacement):
    """Run the tests by the workflow's command line in a bare copy: all fixtures, and of the tests no more than that.

    A test that needs what is not there skips in a fixture (see the next test), so that bodies have no say.
    """
    copy = folder / "copy"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    for name in listed.stdout.split("\0"):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    (folder / "hollow.py").write_text(HOLLOW, "utf-8")
    job = yaml.safe_load((copy / ".github" / "workflows" / "ci.yml").read_text("utf-8"))["jobs"]["units"]
    (step,) = [step for step in job["steps"] if step.get("run", "").startswith("pytest ")]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    env = clean | step["env"] | {"PATH": path, "PYTHONPATH": f"{copy}:{folder}", "PYTEST_PLUGINS": "hollow"}
    command = step["run"].replace(*replacement) if replacement else step["run"]
    return subprocess.run(["bash", "-ec", command], cwd=copy, env=env, capture_output=True, text=True)


def test_the_units_skip_nothing_where_nothing_is_built(tmp_path):
    result = units(tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"^\d{3,} passed", result.stdout, re.MULTILINE), result.stdout


def test_without_their_marker_the_units_would_fail(tmp_path):
    result = units(tmp_path, '-m "not site and not browser"', "tests/test_install.py")
    assert result.returncode == 1 and "CI skips none" in result.stdout, result.stdout + result.stderr


def test_the_site_and_the_browser_have_one_road():
    """Only conftest.py may skip or name the folder `build`: a test asks for its fixtures, and so gets their markers."""
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            name = getattr(node, "attr", getattr(node, "id", None))
            assert name not in ("skip", "skipif", "importorskip", "xfail"), f"{path.name} skips by itself"
            named = isinstance(node, ast.BinOp) and isinstance(node.right, ast.Constant) and node.right.value
            assert named != "build", f"{path.name} goes to build/ by itself: use the fixture `built`"


def test_the_units_span_the_versions_of_pytorch():
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))["jobs"]["units"]
    bounds = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    (lowest,) = [bound.removeprefix("torch>=") for bound in bounds if bound.startswith("torch>=")]
    newest = re.search(r"^torch==(\S+)", (ROOT / "requirements.txt").read_text("utf-8"), re.MULTILINE).group(1)
    assert job["strategy"]["matrix"]["torch"] == [f"{lowest}.0", newest]


def test_lower_bounds_do_not_contradict_each_other():
    """pandas 2.2.0 and 2.2.1 ask for numpy below 2 on every Python that the book runs on."""
    bounds = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    lowest = {name: tuple(map(int, version.split("."))) for name, version in (bound.split(">=") for bound in bounds)}
    assert lowest["pandas"] >= (2, 2, 2) or lowest["numpy"] < (2, 0)


def test_the_weekly_link_check_never_blocks():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "weekly.yml").read_text("utf-8"))["jobs"]
    assert jobs["links"]["continue-on-error"] is True


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda p: p.stem)
def test_issue_templates_are_complete(path):
    template = yaml.safe_load(path.read_text("utf-8"))
    if path.stem != "config":
        assert template["name"] and template["description"]
        assert all(
            field["type"] in ("input", "textarea") and field["attributes"]["label"] for field in template["body"]
        )
        assert len({field["id"] for field in template["body"]}) == len(template["body"])


def test_the_dev_container_has_one_fixed_image():
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text("utf-8"))
    major = re.fullmatch(r"mcr\.microsoft\.com/devcontainers/python:(\d+)-3\.11-\w+", container["image"]).group(1)
    assert int(major) >= 3, "the images of the majors before 3 are frozen, and their apt-get update fails"
    assert "make .venv/.done" in container["postCreateCommand"]


def test_binder_installs_what_the_notebooks_import_and_no_more():
    """Its pins are those of requirements.txt, without the site's and the tests' packages."""
    pinned = (ROOT / "requirements.txt").read_text("utf-8").partition("# the book's code\n")[2].partition("\n\n")[0]
    lean = (ROOT / ".binder" / "requirements.txt").read_text("utf-8").splitlines()
    assert [line for line in lean if not line.startswith(("#", "--"))] == pinned.splitlines()
    packages = set(re.findall(r"^([\w-]+)==", pinned, re.MULTILINE))
    for path in NOTEBOOKS:
        cells = [re.sub(r"^(\s*)[%!].*", r"\1pass", cell.source, flags=re.MULTILINE) for cell in code_cells(path)]
        sources = "\n".join(cell.source for cell in code_cells(path))
        scripts = frozenset(re.findall(r"^%%writefile \S+/(\w+)\.py$", sources, re.MULTILINE))  # that it writes
        imported = set().union(*(third_party(ast.parse(cell), scripts) for cell in cells))
        assert imported <= brought_by(packages), f"{path.name} imports {imported - brought_by(packages)}"
    for path in (ROOT / "ebmlib").glob("*.py"):
        imported = third_party(ast.parse(path.read_text("utf-8")))
        assert imported <= brought_by(packages), f"{path.name} imports {imported - brought_by(packages)}"


@pytest.mark.parametrize("path", sorted((ROOT / "ebmlib").glob("*.py")), ids=lambda path: path.stem)
def test_nothing_private_is_imported_from_another_package(path):
    """A private name may be new, as one of torch 2.13 was that torch 2.6 lacks, and may go."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module != "__future__":
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
            assert not any(name.startswith("_") for name in names), f"{path.name} imports {'.'.join(names)}"


def test_every_file_is_read_by_its_encoding():
    for path in [path for folder in ("ebmlib", "tests", "book") for path in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "read_text":
                assert node.args or node.keywords, f"{path.relative_to(ROOT)}, line {node.lineno}: read_text('utf-8')"


def test_version_and_address_are_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    config = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
    assert project["version"] == ebmlib.__version__ == citation["version"]
    assert repository() == citation["repository-code"] == config["repository"]["url"]
    assert config["repository"]["branch"] == "main"


def test_the_citation_has_what_the_format_requires():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["title"] == yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))["title"]
    assert citation["message"] and citation["type"] in ("software", "dataset")
    assert all(author.get("name") or author.get("family-names") for author in citation["authors"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_readme_opens_each_notebook_on_colab(path):
    slug = repository().removeprefix("https://github.com/")
    address = f"https://colab.research.google.com/github/{slug}/blob/main/notebooks/{path.name}"
    assert address in (ROOT / "README.md").read_text("utf-8")


def test_make_help_shows_each_target_that_has_no_file():
    text = (ROOT / "Makefile").read_text("utf-8")
    named = set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE).group(1).split())
    shown = set(re.findall(r"^([a-z]+):.*## ", text, re.MULTILINE))
    assert named - {"executed"} == shown
