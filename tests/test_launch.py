"""The scripts of launch/, run with stand-ins for the programs of the clusters."""

import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import pytest
import yaml
from absl.testing import flagsaver
from jax.sharding import AbstractMesh

from msa_jax.config_file import CONFIG, parse_flags
from msa_jax.modules.init import init_params
from msa_jax.sharding.mesh import AXES
from msa_jax.sharding.rules import state_shardings
from msa_jax.training.config import train_config

REPOSITORY = Path(__file__).parents[1]
LAUNCH = REPOSITORY / "launch"
GUIDE = REPOSITORY / "docs" / "clusters.md"
SCRIPTS = sorted(path.name for path in LAUNCH.glob("*.sh"))


@pytest.fixture
def stand_in(tmp_path):
    """Puts programs on the PATH that write down their arguments; environment and what they saw."""
    folder, seen = tmp_path / "bin", tmp_path / "seen"
    folder.mkdir()
    for name in ("gcloud", "kubectl", "srun", "python"):
        program = folder / name
        # Arguments are ended by one of ASCII's separators, and calls by another.
        record = f"{{ printf '%s\\037' {name} \"$@\"; printf '\\036'; }} >> {seen}"
        program.write_text(f"#!/bin/sh\n{record}\n")
        program.chmod(0o755)

    def run(*command, **variables):
        path = f"{folder}:{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "VENV": str(tmp_path)} | variables
        subprocess.run(command, check=True, env=environment, cwd=REPOSITORY, timeout=60)
        return [call.split("\x1f")[:-1] for call in seen.read_text().split("\x1e")[:-1]]

    return run


def manifest(kind, **variables):
    if not shutil.which("envsubst"):
        pytest.skip("needs envsubst (gettext)")
    text = subprocess.check_output(
        [LAUNCH / "jobset.sh", kind, "--print"], env=os.environ | variables, text=True
    )
    assert "${" not in text
    return yaml.safe_load(text)


def pod_of(manifest):
    (hosts,) = manifest["spec"]["replicatedJobs"]
    return hosts["template"]["spec"]["template"]["spec"]


def slurm_command(stand_in):
    (call,) = stand_in("bash", str(LAUNCH / "gpu_slurm.sh"), SHARED="/shared")
    return call[call.index("python") :]


def tpu_command(stand_in):
    ((*_, remote),) = stand_in(str(LAUNCH / "tpu_pod.sh"), "train")
    words = shlex.split(remote.removeprefix("--command="))
    start = words.index("python")
    return words[start : words.index(">>", start)]


def jobset_command(kind):
    def command(stand_in):
        (container,) = pod_of(manifest(kind))["containers"]
        (call,) = stand_in(*container["command"], *container["args"])
        return call

    return command


# Devices are those of the defaults of each script.
LAUNCHED = {
    "gpu_slurm.sh": (slurm_command, 64),
    "tpu_pod.sh": (tpu_command, 64),
    "jobset.sh gpu": (jobset_command("gpu"), 64),
    "jobset.sh tpu": (jobset_command("tpu"), 64),
}


def guide_rows():
    """`(chips, flags)` of the table of meshes."""
    rows = [
        line.split("|")[1:-1] for line in GUIDE.read_text().splitlines() if "`--config." in line
    ]
    return [(int(chips), row.strip().strip("`").split()) for chips, row, *_ in rows]


@pytest.fixture
def load(monkeypatch):
    """The run that flags describe, given in the root of the repository."""
    monkeypatch.chdir(REPOSITORY)

    def load(*arguments):
        # Where ml_collections looks for overrides.
        monkeypatch.setattr(sys, "argv", ["train", *arguments])
        with flagsaver.flagsaver():
            assert parse_flags(sys.argv) == ["train"]  # Every argument is a flag.
            others = ("demo", "evaluation")  # Sections that the program takes for itself.
            values = CONFIG.value
            return train_config({name: values[name] for name in values if name not in others})

    return load


def check_mesh(run, devices):
    """That parameters, groups and memories can be cut as the mesh says, on as many devices."""
    mesh = run.mesh
    sizes = mesh.sizes(devices)
    data, fsdp, _, memory = sizes
    assert math.prod(sizes) == devices
    params = jax.eval_shape(partial(init_params, run.model), jax.random.key(0))
    state_shardings(params, AbstractMesh(sizes, AXES))
    for stage in run.stages:
        assert stage.groups % (data * fsdp) == 0, stage
        assert stage.memory_tokens // run.data.row_tokens % memory == 0, stage


@pytest.mark.parametrize("script", SCRIPTS)
def test_bash_reads_the_script(script):
    subprocess.run(["bash", "-n", LAUNCH / script], check=True)
    assert os.access(LAUNCH / script, os.X_OK)


@pytest.mark.parametrize("script", LAUNCHED)
def test_the_command_of_a_script_describes_a_run_that_fits_its_machines(stand_in, load, script):
    command, devices = LAUNCHED[script]
    python, module, program, *arguments = command(stand_in)
    assert [python, module, program] == ["python", "-m", "msa_jax.train"]
    run = load(*arguments)
    assert run.workdir.startswith("/shared/") and run.data.documents.startswith("/shared/")
    check_mesh(run, devices)


@pytest.mark.parametrize(("chips", "arguments"), guide_rows(), ids=str)
def test_the_meshes_of_the_guide_fit(load, chips, arguments):
    check_mesh(load("--config=configs/qwen3_4b.py", *arguments), chips)


def test_the_guide_has_meshes():
    assert {8, 64, 256} <= {chips for chips, _ in guide_rows()}


@pytest.mark.parametrize("kind", ["gpu", "tpu"])
def test_a_jobset_starts_one_process_on_each_host(kind):
    jobset = manifest(kind, NAME="name", HOSTS="5", CHIPS="3", CLAIM="disk")
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (hosts,) = jobset["spec"]["replicatedJobs"]
    job = hosts["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 5
    assert job["completionMode"] == "Indexed" and job["backoffLimit"] == 0
    (container,) = pod_of(jobset)["containers"]
    assert list(container["resources"]["limits"].values()) == [3]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod_of(jobset)["volumes"]}
    environment = {variable["name"]: variable.get("value") for variable in container["env"]}
    if kind == "gpu":
        assert environment["JAX_COORDINATOR_ADDRESS"] == f"name-{hosts['name']}-0-0.name:8476"
        assert environment["JAX_NUM_PROCESSES"] == "5" and "JAX_PROCESS_ID" in environment


@pytest.mark.parametrize("kind", ["gpu", "tpu"])
def test_a_pod_that_must_leave_its_node_fails_after_its_run_has_ended(kind, tmp_path):
    (container,) = pod_of(manifest(kind))["containers"]
    stand_in, started, saved = (tmp_path / name for name in ("python", "started", "saved"))
    stand_in.write_text(
        f"#!/bin/sh\ntrap 'sleep 0.2; touch {saved}; exit 0' TERM\ntouch {started}\n"
        "while :; do sleep 0.05; done\n"
    )
    stand_in.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    pod = subprocess.Popen([*container["command"], *container["args"]], env=environment)
    try:
        while not started.exists():
            time.sleep(0.01)
        pod.send_signal(signal.SIGTERM)
        assert pod.wait(60) == 143 and saved.exists()
    finally:
        pod.kill()


def test_the_usage_of_a_script_is_that_of_its_head():
    for script in ("tpu_pod.sh", "jobset.sh"):
        usage = subprocess.run([LAUNCH / script], capture_output=True, text=True)
        assert usage.returncode == 2
        assert all(line.startswith(f"launch/{script} ") for line in usage.stderr.splitlines())


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_a_memory_may_be_spread_as_configs_100m_says(load, devices):
    text = (REPOSITORY / "configs" / "100m.py").read_text()
    (flags,) = re.findall(r"`(--config.mesh.memory=-1 [^`]+)`", text)
    run = load("--config=configs/100m.py", *flags.split())
    assert run.mesh.sizes(devices) == (1, 1, 1, devices)
    check_mesh(run, devices)
