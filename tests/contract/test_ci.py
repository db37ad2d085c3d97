"""M16: the scripts that CI runs, and the files that make GitHub and GitLab run them."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract.manifests import OVERLAYS

CHECKOUT = Path(__file__).parents[2]
SCRIPT = CHECKOUT / ".ci/run"
AUDIT = CHECKOUT / "deploy/local/audit.sh"
WORKFLOWS = sorted((CHECKOUT / ".github/workflows").glob("*.y*ml"))
GITLAB = CHECKOUT / ".gitlab-ci.yml"
FILES = [*WORKFLOWS, GITLAB]
# Keys of .gitlab-ci.yml that are not jobs.
_GITLAB_KEYWORDS = {"workflow", "default", "variables", "stages", "include"}
# What every CI system runs: the name of a job, and a line of its script.
LANES = {
    "test": ".ci/run",
    "rabbitmq4": "make test-rabbitmq4",
    "slow": "make soak",
    "build-image": "docker build --pull --file deploy/docker/Dockerfile --tag ringback .",
    "manifests": "go install sigs.k8s.io/kustomize/kustomize/v5@v5.8.1",
    "audit": "deploy/local/audit.sh",
}
_PUBLISHES = re.compile(
    r"docker (login|push)|--push|\bgh |git push|twine|publish|upload-pages|deploy-pages"
    r"|action-gh-release|build-push-action|attest"
)


def recipes() -> dict[str, list[str]]:
    """Return the recipes of the Makefile."""
    found: dict[str, list[str]] = {}
    for line in (CHECKOUT / "Makefile").read_text().splitlines():
        if line.startswith("\t"):
            list(found.values())[-1].append(line)
        elif line and line[0].isalpha() and ":" in line:
            found[line.partition(":")[0]] = []
    return found


def jobs(file: Path) -> dict[str, dict[str, Any]]:
    """Return the jobs of a file of CI."""
    parsed = yaml.safe_load(file.read_text())
    if file != GITLAB:
        return dict(parsed["jobs"])
    return {
        name: job
        for name, job in parsed.items()
        if name not in _GITLAB_KEYWORDS and not name.startswith(".")
    }


def commands(job: dict[str, Any]) -> list[str]:
    """Return the commands of a job."""
    steps = job.get("script") or [step["run"] for step in job["steps"] if "run" in step]
    return [line.strip() for step in steps for line in step.splitlines()]


def images(job: dict[str, Any]) -> list[str]:
    """Return the images of a job: its own, and those of its services."""
    container = job.get("container") or job.get("image")
    image = container["image"] if isinstance(container, dict) else container
    return [each for each in (image, *job.get("services", ())) if each is not None]


def without_comments(file: Path) -> str:
    return re.sub(r"(?m)(^|\s)#.*$", "", file.read_text())


def test_m16_ci_runs_lint_and_the_tests_and_stops_at_the_first_failure() -> None:
    assert SCRIPT.stat().st_mode & 0o111, "the script is not executable"
    lines = SCRIPT.read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    assert "set -euo pipefail" in lines
    steps = [line for line in lines if line.startswith("make ")]
    assert steps == ["make lint", "make test"]


def test_m16_lint_and_test_run_every_tool() -> None:
    lint = "\n".join(recipes()["lint"])
    assert all(
        tool in lint for tool in ("ruff check", "ruff format --check", "mypy", "lint-imports")
    )
    assert "-m pytest" in "\n".join(recipes()["test"])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_m16_every_ci_system_runs_every_lane(file: Path) -> None:
    found = jobs(file)
    assert {name: line for name, line in LANES.items() if line in commands(found[name])} == LANES
    assert found.keys() == LANES.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_m16_ci_calls_only_targets_and_scripts_that_exist(file: Path) -> None:
    lines = "\n".join(line for job in jobs(file).values() for line in commands(job))
    targets = set(re.findall(r"(?m)^make ([\w-]+)", lines))
    assert targets
    assert targets <= recipes().keys()
    scripts = {CHECKOUT / path for path in re.findall(r"(?m)^[./\w]+/\S+", lines)}
    assert scripts == {SCRIPT, AUDIT}
    assert all(path.stat().st_mode & 0o111 for path in scripts)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_m16_ci_publishes_nothing_and_uses_no_secret(file: Path) -> None:
    text = without_comments(file)
    assert not _PUBLISHES.search(text)
    assert not re.search(r"secrets\b|_TOKEN|PASSWORD|CI_REGISTRY|id-token", text)
    for job in jobs(file).values():
        assert not job.keys() & {"release", "pages", "environment", "trigger", "secrets"}


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_m16_workflows_only_read(file: Path) -> None:
    workflow = yaml.safe_load(file.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in workflow["jobs"].values())
    # YAML 1.1 reads the key `on` as a boolean. Other triggers have the rights of the base branch.
    assert workflow[True].keys() <= {"push", "pull_request", "schedule", "workflow_dispatch"}
    for job in workflow["jobs"].values():
        [checkout] = [step for step in job["steps"] if "checkout@" in step.get("uses", "")]
        assert checkout["with"]["persist-credentials"] is False


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_m16_actions_are_pinned_to_a_commit_and_name_its_version(file: Path) -> None:
    used = re.findall(r"(?m)^\s*- uses: (.*)$", file.read_text())
    assert used
    assert [
        line
        for line in used
        if not re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)
    ] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_m16_images_name_a_release_and_every_job_has_a_timeout(file: Path) -> None:
    default = yaml.safe_load(file.read_text()).get("default", {}).get("image")
    for job in jobs(file).values():
        assert job.get("timeout-minutes") or job.get("timeout")
        assert all(re.search(r":\d[\w.-]*$", image) for image in images(job))
    # The tests run on Debian 12, the oldest system that Ringback supports.
    for name in ("test", "rabbitmq4", "slow"):
        assert (images(jobs(file)[name]) or [default]) == ["python:3.11-slim-bookworm"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_m16_ci_renders_every_overlay_with_the_kustomize_of_the_docs(file: Path) -> None:
    lines = commands(jobs(file)["manifests"])
    assert f"`{lines[0]}`" in (CHECKOUT / "docs/kubernetes.md").read_text()
    assert lines[1:] == [
        f"kustomize build deploy/k8s/overlays/{name} | diff deploy/k8s/rendered/{name}.yaml -"
        for name in OVERLAYS
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_m16_the_bill_of_materials_is_made_with_the_python_of_the_image(file: Path) -> None:
    dockerfile = (CHECKOUT / "deploy/docker/Dockerfile").read_text()
    assert images(jobs(file)["audit"]) == [dockerfile.split("\nFROM ")[-1].split()[0]]


def test_the_bill_of_materials_has_the_extras_of_the_image() -> None:
    dockerfile = CHECKOUT / "deploy/docker/Dockerfile"
    image, audit = (re.findall(r"'\.\[.+?\]'", path.read_text()) for path in (dockerfile, AUDIT))

    assert audit == image


def test_m16_scripts_name_versions_but_no_host() -> None:
    for script in (SCRIPT, AUDIT):
        text = script.read_text()
        assert not re.search(r"https?://|index-url", text)
        for words in re.findall(r"pip\" install (.*)", text):
            packages = [word for word in words.split() if not word.startswith("-")]
            assert all(re.fullmatch(r"[\w-]+==[\d.]+", package) for package in packages)


def test_m16_dependabot_watches_files_that_exist() -> None:
    manifests = {
        "pip": "pyproject.toml",
        "github-actions": ".github/workflows",
        "docker": "Dockerfile",
        "docker-compose": "docker-compose.yml",
    }
    config = yaml.safe_load((CHECKOUT / ".github/dependabot.yml").read_text())
    assert {each["package-ecosystem"] for each in config["updates"]} == manifests.keys()
    for each in config["updates"]:
        directory = CHECKOUT / each["directory"].lstrip("/")
        assert (directory / manifests[each["package-ecosystem"]]).exists()
