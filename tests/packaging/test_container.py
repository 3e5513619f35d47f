"""What the Dockerfile, docker-compose.yml and deploy/ name is there, and they agree.

Where ``C2V_TEST_IMAGE=1`` is set and a Docker daemon answers, the CPU image is built and asked too.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from container_files import is_ignored, read_dockerfile
from typer.main import get_command

from c2v_engine.cli import app

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings the same
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
ARGUMENTS, STAGES = read_dockerfile((ROOT / "Dockerfile").read_text(encoding="utf-8"))
IGNORE = (ROOT / ".dockerignore").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
PROMETHEUS = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMAGES = ("cpu", "cuda")
SERVERS = [COMPOSE["services"][image] for image in IMAGES]


@pytest.fixture(scope="module")
def route_paths():
    """Paths that the server answers to; no model is needed to know them."""
    from c2v_engine.serving.http.app import create_app
    from c2v_engine.serving.http.options import HttpOptions
    from c2v_engine.serving.watch.metrics import Metrics
    from c2v_engine.serving.watch.status import watch_router

    service = SimpleNamespace(name="c2v", prompts={}, max_length=512, dimension=512, segments=2)
    watching = watch_router(service, Metrics(service))
    app = create_app(service, HttpOptions(("c2v",)), routers=[watching])
    routes = [*app.routes, *watching.routes]
    return {route.path for route in routes if hasattr(route, "path")}


def tracked_files():
    """Files that git knows; those of the folder where there is no git."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        return {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file()}
    return set(listed.stdout.splitlines())


def copied_from_tree(stage):
    """(source, target) of what a stage takes from the repository."""
    for origin, sources, target in STAGES[stage].copies():
        if origin is None:
            yield from ((source, target) for source in sources)


def parsed(words):
    """The context of a c2v command; it fails where the command or an option is not known."""
    return get_command(app).commands[words[0]].make_context(words[0], list(words[1:]))


def seconds(text):
    return int(re.fullmatch(r"(\d+)s", text)[1])


@pytest.mark.parametrize("stage", ["cpu-build", "cuda-build"])
def test_what_is_copied_is_in_git_and_reaches_the_build(stage):
    files, copied = tracked_files(), list(copied_from_tree(stage))
    for source, target in copied:
        below = {name for name in files if name == source or name.startswith(f"{source}/")}
        assert below, f"COPY {source}: not in git"
        assert [name for name in sorted(below) if is_ignored(name, IGNORE)] == []
        # A folder's contents are copied, not the folder.
        assert target == ("./" if below == {source} else source)


@pytest.mark.parametrize("stage", ["cpu-build", "cuda-build"])
def test_all_that_the_package_is_built_from_is_copied(stage):
    copied = {source for source, _ in copied_from_tree(stage)}
    packaging = {"pyproject.toml", "setup.py", PROJECT["readme"], *PROJECT["license-files"]}
    assert copied == packaging | {"csrc", "kernels", "c2v_engine"}


@pytest.mark.parametrize(
    "path",
    [".git/config", ".venv/bin/c2v", "tests/conftest.py", "models/my-model/model.safetensors",
     "c2v_engine/_C.abi3.so", "kernels/__pycache__/int8.pyc", "keys.txt"],
)  # fmt: skip
def test_other_files_stay_out_of_the_build(path):
    assert is_ignored(path, IGNORE)


def test_stages_take_from_stages_before_them():
    before = set()
    for name, stage in STAGES.items():
        assert {origin for origin, _, _ in stage.copies() if origin} <= before
        before.add(name)
    assert set(IMAGES) <= before
    for image in IMAGES:
        assert [origin for origin, _, _ in STAGES[image].copies()] == [f"{image}-build"]


def test_extras_are_those_of_the_project():
    for image in IMAGES:
        installs = " ".join(STAGES[f"{image}-build"].all("RUN"))
        (extras,) = re.findall(r'--no-build-isolation "\.\[([\w,-]+)\]"', installs)
        assert {"serve", "otel"} <= set(extras.split(",")) <= set(PROJECT["optional-dependencies"])


def test_commands_and_their_options_exist():
    commands = []
    for name, stage in STAGES.items():
        runs = " && ".join(stage.all("RUN"))
        commands += [
            (name, shlex.split(found)) for found in re.findall(r"(?:^|&& )c2v ([^&]*)", runs)
        ]
    assert {name for name, _ in commands} == {"cpu-build", "cuda-build"}
    for _, words in commands:
        parsed(words)
    for image, server in zip(IMAGES, SERVERS, strict=True):
        program, *words = STAGES[image].list("ENTRYPOINT")
        assert program == "c2v"
        assert parsed([*words, *server["command"]]).command.name == "serve"
    # The other one, for a model of one's own, which is a comment.
    (line,) = re.findall(r"# command: (\[.*\])", (ROOT / "docker-compose.yml").read_text())
    assert parsed([*words, *json.loads(line)]).params["model"] == "/models/my-model"


def test_the_images_differ_in_what_computes_alone():
    same = ("USER", "WORKDIR", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT")
    cpu, cuda = (STAGES[image] for image in IMAGES)
    for name in same:
        assert cpu.all(name) == cuda.all(name)
        assert cpu.all(name)


def test_nobody_is_root_and_what_is_written_has_a_place():
    for image in IMAGES:
        stage = STAGES[image]
        user = stage.last("USER")
        assert f"useradd --uid {user} --create-home --home-dir /cache " in stage.last("RUN")
        assert int(user) > 1000
        places = re.findall(r"(?:HF_HOME|TRITON_CACHE_DIR)=(\S+)", " ".join(stage.all("ENV")))
        assert places
        assert all(place.startswith("/cache/") for place in places)
        assert stage.list("VOLUME") == ["/models", "/cache"]
        # After them the owner of what a volume holds would be lost.
        names = [name for name, _ in stage.instructions]
        assert names.index("VOLUME") > max(n for n, name in enumerate(names) if name == "RUN")


def test_ports_agree(route_paths):
    defaults = parsed(["serve"]).params
    for image, server in zip(IMAGES, SERVERS, strict=True):
        stage = STAGES[image]
        serve = parsed(stage.list("ENTRYPOINT")[1:]).params
        assert serve["port"] == defaults["port"] == int(stage.last("EXPOSE"))
        assert serve["host"] == "0.0.0.0"
        (port,) = server["ports"]
        assert port == f"127.0.0.1:{defaults['port']}:{defaults['port']}"
        assert f"http://127.0.0.1:{defaults['port']}/" in stage.last("HEALTHCHECK")
    (job,) = PROMETHEUS["scrape_configs"]
    (discovery,) = job["dns_sd_configs"]
    assert discovery["port"] == defaults["port"]
    assert all(discovery["names"] == s["networks"]["default"]["aliases"] for s in SERVERS)
    assert job["metrics_path"] in route_paths


def test_health_is_asked_at_a_route_of_the_server(route_paths):
    check = STAGES["cpu"].last("HEALTHCHECK")
    command = json.loads(check[check.index("[") :])
    compile(command[2], "HEALTHCHECK", "exec")
    (path,) = re.findall(r"'http://127.0.0.1:\d+(/[\w/]+)'", command[2])
    assert path in route_paths
    # The request gets less time than the check as a whole.
    within = int(re.search(r"timeout=(\d+)\)", command[2])[1])
    assert seconds(re.search(r"--timeout=(\S+)", check)[1]) > within


def test_the_server_is_given_the_time_that_it_takes_to_stop():
    grace = parsed(["serve"]).params["grace"]
    for image, server in zip(IMAGES, SERVERS, strict=True):
        assert STAGES[image].last("STOPSIGNAL") == "SIGTERM"
        assert seconds(server["stop_grace_period"]) > grace


def test_torch_python_and_cuda_are_those_that_fit():
    (torch,) = re.findall(r"^TORCH \?= torch==(\S+)$", (ROOT / "Makefile").read_text(), re.M)
    assert ARGUMENTS["TORCH"] == torch
    major, minor, _ = ARGUMENTS["CUDA"].split(".")
    assert f"/whl/cu{major}{minor}" in " ".join(STAGES["cuda-build"].all("ARG"))
    for name in ("cuda-build", "cuda"):
        assert STAGES[name].base.startswith(f"nvidia/cuda:{ARGUMENTS['CUDA']}-")
        assert f"python{ARGUMENTS['PYTHON']}" in " ".join(STAGES[name].all("RUN"))
    assert re.findall(r"nvidia/cuda:\S+-(\w+)-ubuntu", STAGES["cuda"].base) == ["base"]
    # The two stages of an image find Python at the same place.
    assert STAGES["cpu-build"].base == STAGES["cpu"].base


def test_compose_builds_the_targets_and_mounts_what_is_there():
    for image, server in zip(IMAGES, SERVERS, strict=True):
        assert server["build"] == {"context": ".", "target": image}
        assert server["profiles"] == [image]
        assert server["environment"] == ["C2V_API_KEYS"]
    assert COMPOSE["services"]["prometheus"]["profiles"] == list(IMAGES)
    volumes = [v for service in COMPOSE["services"].values() for v in service["volumes"]]
    for volume in volumes:
        source = volume.split(":")[0]
        if source.startswith("./") and source != "./models":  # the user's own
            assert source.removeprefix("./") in tracked_files()
        elif not source.startswith("./"):
            assert source in COMPOSE["volumes"]
    inside = {volume.split(":")[1] for server in SERVERS for volume in server["volumes"]}
    assert inside == set(STAGES["cpu"].list("VOLUME"))
    (device,) = SERVERS[1]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


@pytest.fixture(scope="module")
def image():
    """The CPU image, built."""
    if os.environ.get("C2V_TEST_IMAGE") != "1":
        pytest.skip("C2V_TEST_IMAGE=1 builds the image, which takes minutes and a network")
    if not shutil.which("docker") or subprocess.run(["docker", "info"]).returncode:
        pytest.skip("no Docker daemon answers")
    subprocess.run(
        ["docker", "build", "--target", "cpu", "-t", "c2v-engine:test", ROOT], check=True
    )
    return "c2v-engine:test"


def test_the_image_serves_is_healthy_and_stops_in_time(image):
    started = subprocess.run(
        ["docker", "run", "--rm", "--detach", "--publish", "127.0.0.1:0:8080", image],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    container = started.stdout.strip()

    def ask(*command):
        return subprocess.run(
            ["docker", *command], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        url = f"http://{ask('port', container, '8080').splitlines()[0]}"
        deadline = time.monotonic() + 120
        while ask("inspect", "--format", "{{.State.Health.Status}}", container) != "healthy":
            assert time.monotonic() < deadline
            time.sleep(0.5)
        body = json.dumps({"model": "default", "input": "hello"}).encode()
        request = urllib.request.Request(
            f"{url}/v1/embeddings", body, {"Content-Type": "application/json"}
        )
        answer = json.load(urllib.request.urlopen(request, timeout=30))
        assert len(answer["data"][0]["embedding"]) == 512
        assert ask("exec", container, "id", "-u") == "10001"
    finally:
        began = time.monotonic()
        ask("stop", "--timeout", "40", container)
    assert time.monotonic() - began < 30
