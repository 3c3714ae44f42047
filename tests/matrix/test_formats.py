"""The jobs of a matrix as files: each is what its engine takes, and its lines build the cell that they name."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dca.cli.matrix import command
from dca.foundation.errors import DcaError
from dca.matrix import formats, jobs
from dca.matrix.formats import FORMATS, Format
from dca.matrix.jobs import Wish
from dca.matrix.values import Job, Jobs
from tests.support import ROOT

BIN = Path(sys.executable).parent
# Texts with what YAML, a shell or a template reads in its own way.
ODD = 'a b\'s "c" #d: $e {{ f }} ${{ g }}.toml'


def job(number: int, **more: Any) -> Job:
    words = ("dca", "matrix", ODD, "--cell", f"{number:08x}", "--smoke", "cpu", "--out", "dist")
    fields: dict[str, Any] = {
        "id": f"{number:08x}",
        "cells": (f"{number:08x}",),
        "options": "--recipe one --arch 8.0",
        "plan": "0123456789abcdef",
        "version": "1.0+dca9.cu124",
        "here": True,
        "sources": 12,
        "cores": 4,
        "gib": 14,
        "command": words,
    }
    return Job(**fields | more)


JOBS = Jobs(matrix=ODD, sha256="0" * 64, jobs=(job(1), job(2, cores=2, gib=7, here=False, code="DCA-302", why="no.")))


def written(kind: Format, jobs: Jobs = JOBS, action: str = "", **more: Any) -> str:
    return formats.write(jobs, kind, Wish(Path(ODD), 4, None, Path("dist"), **more), action)


def parsed(line: str) -> None:
    """Read a job's line as the command line does."""
    words = shlex.split(line)
    assert words[1] == "matrix"
    with command.make_context("matrix", words[2:]) as context:
        assert context.params["file"] == Path(ODD)
        assert (context.params["smoke"], context.params["out"]) == ("cpu", Path("dist"))
        assert len(context.params["only"]) == 1


def valid(schema: str, text: str, folder: Path) -> None:
    (folder / "file.yml").write_text(text)
    done = subprocess.run(
        [BIN / "check-jsonschema", "--builtin-schema", schema, folder / "file.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_github_takes_its_file(tmp_path: Path) -> None:
    text = written("github")
    valid("vendor.github-workflows", text, tmp_path)
    wheel = yaml.safe_load(text)["jobs"]["wheel"]
    rows = wheel["strategy"]["matrix"]["include"]
    assert [(row["cell"], row["cores"], row["gib"]) for row in rows] == [("00000001", 4, 14), ("00000002", 2, 7)]
    assert wheel["strategy"]["fail-fast"] is False
    (line,) = [step["run"] for step in wheel["steps"] if "dca matrix" in step.get("run", "")]
    parsed(line.replace("${{ '${{' }}", "${{"))
    assert '--cell "$CELL"' in line


def test_the_actions_of_githubs_file_are_those_of_this_projects_own_workflows() -> None:
    own = set(re.findall(r"uses: (\S+)", (ROOT / ".github/workflows/wheel.yml").read_text()))
    assert set(re.findall(r"uses: (\S+)", written("github"))) <= own


def test_github_takes_its_file_for_another_repository_with_pages(tmp_path: Path) -> None:
    action = f"someone/dca@{'a' * 40}"
    text = written("github", action=action, index=Path("my index"))
    valid("vendor.github-workflows", text, tmp_path)
    jobs = yaml.safe_load(text)["jobs"]
    assert list(jobs) == ["wheel", "pages"]
    for job in jobs.values():
        assert action in [step.get("uses") for step in job["steps"]]
        assert not any("make venv" in step.get("run", "") for step in job["steps"])
    (uploaded,) = [step["with"] for step in jobs["wheel"]["steps"] if "upload-artifact" in step.get("uses", "")]
    # The folder of an index has a hidden one.
    assert uploaded["include-hidden-files"] is True
    assert uploaded["path"].split("\n") == ["dist/*.whl", "matrix.json", "my index", ""]


@pytest.mark.parametrize("cells", [("",), ("wheel-1",), ("wheel-1", "wheel-2")])
def test_the_indexes_of_githubs_jobs_are_merged_also_of_one_alone_with_a_stand_in_of_dca(
    cells: tuple[str, ...], tmp_path: Path
) -> None:
    """A single artifact is unpacked without a folder of its own, from version 5 of the action on."""
    steps = yaml.safe_load(written("github", action=f"someone/dca@{'a' * 40}", index=Path("my index")))["jobs"]["pages"]
    (merging,) = [step["run"] for step in steps["steps"] if "merge" in step.get("run", "")]
    for cell in cells:
        (tmp_path / "cells" / cell / "my index").mkdir(parents=True)
        (tmp_path / "cells" / cell / "matrix.json").touch()
    (tmp_path / "dca").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "dca").chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    for shell in ("bash", "sh"):
        ran = subprocess.run(
            [shell, "-e", "-c", merging], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
        )
        indexes = [str(Path("cells") / cell / "my index") for cell in cells]
        assert ran.stdout.splitlines() == ["index", "merge", *indexes, "--index", "site"]


def times(text: str) -> list[int]:
    """The minutes after which each job of a file ends."""
    file = yaml.safe_load(text)
    of_github = [job["timeout-minutes"] for job in file.get("jobs", {}).values()]
    of_buildkite = [step["timeout_in_minutes"] for step in file.get("steps", ())]
    return of_github or of_buildkite or [60 * int(file[".wheel"]["timeout"].removesuffix("h"))]


@pytest.mark.parametrize("kind", ["github", "gitlab", "buildkite"])
def test_no_job_stands_still_for_ever(kind: Format) -> None:
    """And none ends after the hour that GitLab gives one by itself, in which some wheels are not built."""
    assert set(times(written(kind))) == {360}


@pytest.mark.parametrize("kind", ["gitlab", "buildkite"])
def test_jobs_that_publish_to_a_bucket_install_what_that_needs_and_name_no_secret(kind: Format, tmp_path: Path) -> None:
    text = written(kind, bucket=("--s3", "s3://wheels"))
    valid(f"vendor.{'gitlab-ci' if kind == 'gitlab' else kind}", text, tmp_path)
    (line,) = {line.strip(" -") for line in text.splitlines() if "pip install" in line}
    assert "--require-hashes" in line
    assert (ROOT / shlex.split(line)[-1]).is_file()
    assert "AWS_SECRET_ACCESS_KEY" in text
    assert "AWS_SECRET_ACCESS_KEY" not in str(yaml.safe_load(text))
    assert "pip install" not in written(kind)


def test_a_matrix_whose_name_begins_with_a_dash_is_no_option() -> None:
    words = jobs._command("00000001", Wish(Path("--help"), 4, None, Path("-out")))
    with command.make_context("matrix", list(words[2:])) as context:
        assert context.params["file"] == Path("--help")
        assert context.params["out"] == Path("-out")


@pytest.mark.parametrize("action", ["", f"someone/dca@{'a' * 40}"])
def test_githubs_jobs_publish_to_a_bucket(action: str, tmp_path: Path) -> None:
    bucket = ("--s3", "s3://wheels/a b", "--s3-endpoint", "https://store.example")
    jobs = Jobs(matrix=ODD, sha256="0" * 64, jobs=(job(1, command=(*job(1).command, *bucket)),))
    text = written("github", jobs, action, bucket=bucket)
    valid("vendor.github-workflows", text, tmp_path)
    (steps,) = [job["steps"] for job in yaml.safe_load(text)["jobs"].values()]
    (line,) = [step["run"] for step in steps if "dca matrix" in step.get("run", "")]
    assert "--s3 's3://wheels/a b' --s3-endpoint https://store.example" in line
    if action:
        assert [step["with"] for step in steps if step.get("uses") == action] == [{"s3": True}]
    else:
        (pip,) = [step["run"] for step in steps if "pip" in step.get("run", "")]
        assert (ROOT / shlex.split(pip)[-1]).is_file()


def test_the_action_takes_its_file(tmp_path: Path) -> None:
    text = (ROOT / "action.yml").read_text()
    valid("vendor.github-actions", text, tmp_path)
    for step in yaml.safe_load(text)["runs"]["steps"]:
        checker: list[str | Path] = [BIN / "shellcheck", "--shell=bash", "-"]
        done = subprocess.run(checker, input=step["run"], text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout
    assert "boto3==" in (ROOT / "build/locks/s3.txt").read_text()


def test_gitlab_takes_its_file(tmp_path: Path) -> None:
    text = written("gitlab")
    valid("vendor.gitlab-ci", text, tmp_path)
    jobs = {name: one for name, one in yaml.safe_load(text).items() if name != ".wheel"}
    assert list(jobs) == ["1.0+dca9.cu124 00000001", "1.0+dca9.cu124 00000002"]
    one, two = jobs.values()
    assert (one["variables"]["KUBERNETES_CPU_REQUEST"], two["variables"]["KUBERNETES_MEMORY_REQUEST"]) == ("4", "7Gi")
    parsed(one["script"][0])
    assert "--cell 00000002" in two["script"][0]
    ((rule,),) = (one.values() for one in yaml.safe_load(text)[".wheel"]["rules"])
    pattern = rule.partition("/")[2].rstrip("/")
    assert [source for source in ("push", "merge_request_event", "web", "api") if re.search(pattern, source)] == [
        "web",
        "api",
    ]


def test_buildkite_takes_its_file(tmp_path: Path) -> None:
    text = written("buildkite")
    valid("vendor.buildkite", text, tmp_path)
    steps = yaml.safe_load(text)["steps"]
    assert [step["key"] for step in steps] == ["wheel-00000001", "wheel-00000002"]
    # Its agent replaces variables before a shell reads the line.
    line = steps[1]["command"][1]
    assert "$" not in line.replace("$$", "")
    parsed(line.replace("$$", "$"))


@pytest.mark.slow
def test_slurms_script_runs_the_cell_of_its_task_as_a_stand_in_for_dca_shows(tmp_path: Path) -> None:
    script = tmp_path / "matrix.sh"
    script.write_text(written("slurm"))
    # A name with a dollar stands between single quotes, on purpose.
    checked: list[str | Path] = [BIN / "shellcheck", "--exclude", "SC2016", script]
    done = subprocess.run(checked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    head = re.findall(r"^#SBATCH (\S+)$", script.read_text(), re.MULTILINE)
    assert {"--array=0-1", "--cpus-per-task=4", "--mem=14G"} <= set(head)
    stand_in = tmp_path / "stand in"
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    for task, cell in (("0", "00000001"), ("1", "00000002"), ("2", "")):
        env = {"PATH": "/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": task, "DCA": str(stand_in)}
        ran = subprocess.run(["bash", script], env=env, capture_output=True, text=True, check=False)
        if cell:
            words = [
                "matrix",
                ODD,
                "--cell",
                cell,
                "--smoke",
                "cpu",
                "--out",
                "dist",
                "--report",
                f"matrix-{cell}.json",
            ]
            assert ran.stdout.splitlines() == words
        else:
            assert (ran.returncode, ran.stderr) == (2, "there is no job 2 in this matrix\n")


def test_json_is_the_jobs_themselves() -> None:
    assert Jobs.model_validate(json.loads(written("json"))) == JOBS


@pytest.mark.parametrize("kind", FORMATS)
def test_no_reason_of_a_job_reaches_a_file_as_more_than_its_code(kind: Format) -> None:
    """It may quote a server's answer."""
    text = written(kind, JOBS.model_copy(update={"jobs": (job(1, here=False, code="DCA-301", why="no\n- evil: 1"),)}))
    assert "DCA-301" in text
    assert "\n- evil" not in text


def test_an_engine_is_not_given_more_jobs_than_it_takes() -> None:
    many = JOBS.model_copy(update={"jobs": tuple(map(job, range(257)))})
    with pytest.raises(DcaError) as wrong:
        written("github", many)
    assert wrong.value.code == "DCA-223"
    assert "257 wheels, and github takes 256" in wrong.value.what
    assert len(yaml.safe_load(written("buildkite", many))["steps"]) == 257
