"""The snippets of docs/serving.md run in order against the servers that it starts."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from live_server import LiveServer
from snippets import commands_in, is_as_shown, read_blocks, run_python, run_shell
from typer.main import get_command

from c2v_engine.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
BLOCKS = read_blocks(PAGE)
# What a shell block has where it can not run here, and why. Its commands are checked all the same.
ELSEWHERE = {
    "docker ": "it takes a Docker daemon",
    "my-model": "it takes a checkpoint of the reader's, and GPUs",
    "http://collector": "it takes a collector of traces",
}


def blocks_of(language):
    return [block for block in BLOCKS if block.language == language]


def serve_commands():
    return [line for block in blocks_of("sh") for line in commands_in(block.text, "c2v serve")]


def parsed(words):
    return get_command(app).commands[words[0]].make_context(words[0], list(words[1:]))


def runs_elsewhere(block):
    return any(word in block.text for word in ELSEWHERE)


def run_block(block, server, folder):
    """What a block printed; it may fail only where the page shows the error."""
    name = f"docs/serving.md, line {block.line}"
    if block.language == "python":
        return run_python(server.here(block.text), name)
    text = block.text
    started = commands_in(text, "c2v serve")
    for command in started:
        text = text.replace(command, "", 1)
    code, printed, problem = 0, "", ""
    if text.strip():
        code, printed, problem = run_shell(server.here(text) if server.port else text, folder)
    for command in started:
        server.start(command)
    assert not code or "error" in (block.shown or ""), f"{name}: {printed}{problem}"
    return printed


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """The server after all of the page's snippets ran."""
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    folder = tmp_path_factory.mktemp("serving")
    server = LiveServer(folder)
    patch = pytest.MonkeyPatch()
    # Clients fall back to keys of the environment, and write where the user's caches are.
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "C2V_API_KEYS", "HF_TOKEN"):
        patch.delenv(name, raising=False)
    # The other tests reach for no hub; the client here asks this machine alone.
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    patch.chdir(folder)
    try:
        for block in BLOCKS:
            if block.language not in ("sh", "python") or runs_elsewhere(block):
                continue
            printed = run_block(block, server, folder)
            if block.shown is not None:
                shown = f"line {block.line}: shown\n{block.shown}\nprinted\n{printed}\n"
                assert is_as_shown(printed, server.here(block.shown)), shown + server.log()
        yield server
    finally:
        server.stop()
        patch.undo()


def test_the_snippets_print_what_is_shown(answered):
    assert answered.port
    ran = [block for block in BLOCKS if block.language in ("sh", "python")]
    assert sum(not runs_elsewhere(block) for block in ran) > 15


def test_every_reason_not_to_run_a_block_is_needed():
    for word in ELSEWHERE:
        assert any(word in block.text for block in blocks_of("sh")), word


def test_the_commands_take_their_options():
    assert len(serve_commands()) >= 4
    for command in serve_commands():
        parsed(shlex.split(command)[1:])
    named = set(re.findall(r"`(--[a-z][a-z-]+)", PAGE))
    named |= set(re.findall(r"`c2v serve[^`]*? (--[a-z][a-z-]+)", PAGE))
    options = {name for param in get_command(app).commands["serve"].params for name in param.opts}
    assert named - options <= {"--build-arg", "--cpuset-cpus", "--cpus"}  # Docker's


def test_the_defaults_in_the_text_are_those_of_the_command():
    serve = parsed(["serve"]).params
    assert f"`--max-texts` | {serve['max_texts']:,} |" in PAGE
    assert f"`--max-body-mb` | {serve['max_body_mb']:g} |" in PAGE
    assert f"`--timeout` | {serve['timeout']:g} |" in PAGE
    assert re.search(rf"`--grace` seconds \({serve['grace']:g}\)", PAGE)
    assert f"http://{serve['host']}:{serve['port']}" in PAGE
    assert serve["truncate"] is False


def test_the_limits_without_an_option_are_those_of_the_server():
    from c2v_engine.serving.connections import HEAD_BYTES, HEAD_SECONDS
    from c2v_engine.serving.http.options import HttpOptions

    options = HttpOptions(("default",))
    assert f"| characters of a text | `--max-characters` | {options.max_characters:,} |" in PAGE
    assert f"| seconds in which a body arrives | | {options.body_seconds:g} |" in PAGE
    assert f"| seconds in which a head arrives | | {HEAD_SECONDS:g} |" in PAGE
    assert f"| bytes of a head | | {HEAD_BYTES:,}, " in PAGE


def test_docker_commands_name_what_is_there():
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    images = {service["image"] for service in compose["services"].values()}
    docker = [
        shlex.split(line) for block in blocks_of("sh") for line in commands_in(block.text, "docker")
    ]
    assert {words[1] for words in docker} == {"build", "run", "compose"}
    for words in docker:
        if words[1] == "build":
            target = words[words.index("--target") + 1]
            assert f" AS {target}\n" in dockerfile
            assert words[words.index("-t") + 1] == compose["services"][target]["image"]
        elif words[1] == "run":
            (place,) = (n for n, word in enumerate(words) if word in images)
            parsed(["serve", *words[place + 1 :]])
        else:
            assert words[words.index("--profile") + 1] in compose["services"]
    for name in re.findall(r"--build-arg (\w+)=", PAGE):
        assert f"ARG {name}\n" in dockerfile


def test_kubernetes_asks_at_routes_and_waits_long_enough(answered):
    (block,) = blocks_of("yaml")
    pod = yaml.safe_load(block.text)["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    serve = parsed(["serve", *container["args"]])
    (port,) = container["ports"]
    assert port["containerPort"] == serve.params["port"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        get = container[probe]["httpGet"]
        assert answered.get(get["path"])
        assert get["port"] == port["name"]
    scraped = {
        key.partition("/")[2]: value for key, value in pod["metadata"]["annotations"].items()
    }
    assert answered.get(scraped["path"])
    assert int(scraped["port"]) == port["containerPort"]
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["spec"]["terminationGracePeriodSeconds"] > pause + serve.params["grace"]


def test_queries_ask_for_metrics_that_there_are(answered):
    exported = answered.get("/metrics")
    samples = set(re.findall(r"^(c2v_\w+)(?:\{| )", exported, flags=re.MULTILINE))
    labels = set(re.findall(r"[{,](\w+)=\"", exported))
    assert blocks_of("promql")
    for block in blocks_of("promql"):
        names = set(re.findall(r"\bc2v_\w+", block.text))
        assert names
        assert names <= samples
        assert set(re.findall(r"[{,](\w+)=~?\"", block.text)) <= labels
        assert block.text.count("(") == block.text.count(")")
    families = set(re.findall(r"^# TYPE (c2v_\w+)", exported, flags=re.MULTILINE))
    families.add("c2v_device_tokens_per_second")  # once a batch was half full
    for name, label in re.findall(r"`(c2v_\w+)(?:\{([\w,]+)\})?`", PAGE):
        assert name in families, name
        assert set(label.split(",")) - {""} <= labels, name


def test_the_routes_are_those_of_the_server(answered):
    documented = json.loads(answered.get("/openapi.json"))["paths"]
    known = {
        (method, re.sub(r"\{\w+\}", "{id}", path))
        for path, methods in documented.items()
        for method in methods
    }
    told = set()
    for cell in re.findall(r"^\| (`(?:GET|POST) .*?) \|", PAGE, flags=re.MULTILINE):
        method = ""
        for named in re.findall(r"`((?:GET |POST )?/[\w/{}.]*)`", cell):
            *new, path = named.split()
            method = new[0].lower() if new else method
            told.add((method, path))
    undocumented = ("get", "/openapi.json")
    assert answered.get("/openapi.json")
    assert told - {undocumented} == {entry for entry in known if entry[0] != "head"}


def test_the_statuses_are_those_that_the_server_documents(answered):
    routes = json.loads(answered.get("/openapi.json"))["paths"]
    embed = {
        status
        for path in ("/v1/embeddings", "/embed", "/tokenize")
        for status in routes[path]["post"]["responses"]
    }
    told = set(re.findall(r"^\| (\d{3}) \|", PAGE, flags=re.MULTILINE))
    # Of any server: no such route, no such method, a head that is too long.
    assert told - {"404", "405", "431"} == embed - {"200", "404", "405"}


def test_the_log_line_has_the_fields_of_a_real_one(answered):
    (block,) = blocks_of("json")
    lines = [line for line in answered.log().splitlines() if line.startswith("{")]
    entries = [entry for entry in map(json.loads, lines) if entry.get("route") == "/v1/embeddings"]
    real, shown = next(entry for entry in entries if entry["status"] == 200), json.loads(block.text)
    assert list(shown) == list(real)
    assert {key: type(value) for key, value in shown.items()} == {
        key: type(value) for key, value in real.items()
    }
