"""The project's own files agree with each other, and nothing heavy is imported before it is needed."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import unweave

ROOT = Path(__file__).parent.parent


@pytest.fixture
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_is_the_same_everywhere(project):
    assert project["version"] == unweave.__version__
    assert f"version: {unweave.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_set_up_is_two_commands_and_the_second_runs_the_tests():
    readme = (ROOT / "README.md").read_text()
    section = readme.partition("## Set up\n")[2].partition("\n## ")[0]
    commands = re.findall(r"```bash\n(.*?)```", section, flags=re.DOTALL)
    assert len(commands) == 2
    assert all(command.count("\n") == 1 for command in commands)
    between = re.search(r"<!-- tests:begin -->\n```bash\n(.*)\n```\n<!-- tests:end -->", section)
    assert between
    assert between[1] == commands[1].strip() == "pip install '.[dev]' && pytest -n auto --dist loadgroup"


def test_the_continuous_test_run_repeats_no_command_of_the_readme():
    script = (ROOT / ".ci/run").read_text()
    assert "pytest" not in script
    assert "pip install" not in script
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


@pytest.mark.parametrize("statement", ["import unweave", "import unweave.errors", "import unweave.cli"])
def test_torch_is_not_imported_before_it_is_needed(statement):
    heavy = "{'torch', 'torchvision', 'timm', 'transformers', 'open_clip', 'matplotlib', 'numpy'}"
    code = f"import sys; {statement}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "src")
    assert done.stdout.strip() == "[]"


@pytest.mark.xdist_group("grouped")
def test_tests_of_a_group_run_on_one_worker(request):
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("one process runs all tests, or they are not grouped")
    assert request.node.nodeid.endswith("@grouped")
