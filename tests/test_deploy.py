"""What is in deploy/ fits the program: options, ports, paths, and what goes into an image."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, NamedTuple

import click
import pytest

from latent_memory.cli import app
from latent_memory.cli.options import STORE_VARIABLE
from latent_memory.cli.serving import UPSTREAM_KEY_VARIABLE
from latent_memory.server.settings import MEBIBYTE, PORT, Settings

Cli = Callable[..., CompletedProcess[str]]

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
README = (DEPLOY / "README.md").read_text(encoding="utf-8")
PROGRAM = Path(sys.executable).with_name("latent-memory")
# Of other programs that the page shows.
OTHERS = {
    *(
        "--build-arg",
        "--cap-drop",
        "--entrypoint",
        "--health-cmd",
        "--no-healthcheck",
        "--restart",
        "--rm",
    ),
    *("--security-opt", "--time", "--tmpfs", "--home-dir", "--shell", "--system", "--now"),
}


class Told(NamedTuple):
    """One instruction of a Dockerfile."""

    name: str
    value: str


def joined(text: str) -> list[str]:
    """Return the lines of a file that are no comments, those that go on as one."""
    kept = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return "\n".join(kept).replace("\\\n", " ").splitlines()


def dockerfile() -> list[Told]:
    lines = joined((DEPLOY / "Dockerfile").read_text(encoding="utf-8"))
    return [Told(*line.split(maxsplit=1)) for line in lines if line.strip()]


def last(name: str) -> str:
    """Return what the last instruction of that name says, which is the one that counts."""
    return [told.value for told in dockerfile() if told.name == name][-1]


def image_environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in shlex.split(last("ENV")))


def unit() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in joined((DEPLOY / "latent-memory.service").read_text(encoding="utf-8")):
        name, mark, value = line.partition("=")
        if mark:
            found.setdefault(name, []).append(value)
    return found


def command(*names: str) -> click.Command:
    found: click.Command = app
    for name in names:
        assert isinstance(found, click.Group)
        found = found.commands[name]
    return found


def served(arguments: list[str]) -> dict[str, Any]:
    """Return what `serve` understands; an option that it does not know fails."""
    with command("serve").make_context("serve", arguments) as context:
        return context.params


# -- the image ----------------------------------------------------------------------------------------------


def test_the_image_serves_what_it_exposes() -> None:
    program, name, *more = json.loads(last("ENTRYPOINT"))
    assert (program, name, more) == ("latent-memory", "serve", [])
    settings = served(json.loads(last("CMD")))
    # Within a container, 127.0.0.1 is nobody's.
    assert settings["host"] == "0.0.0.0"
    assert settings["port"] == int(last("EXPOSE")) == PORT
    assert f"127.0.0.1:{PORT}/healthz" in last("HEALTHCHECK")


def test_the_image_keeps_its_memory_in_the_volume_of_its_user() -> None:
    environment = image_environment()
    assert environment[STORE_VARIABLE] == last("VOLUME")
    user, group = last("USER").split(":")
    assert user.isdecimal()
    assert int(user) > 0
    made = next(told.value for told in dockerfile() if told.name == "RUN" and "useradd" in told.value)
    assert f"--uid {user} --gid {group} " in made
    assert f"--owner={user} --group={group} --mode=0700 {last('VOLUME')}" in made
    names = [told.name for told in dockerfile()]
    # Nothing is run as root after that, and what starts is of the last stage.
    assert "RUN" not in names[names.index("USER") :]
    assert names.count("FROM") == 2
    assert [told.value for told in dockerfile() if told.name == "COPY"][-1] == (
        "--from=build /opt/latent-memory /opt/latent-memory"
    )
    assert environment["PATH"].split(":")[0] == "/opt/latent-memory/bin"


def built(directory: Path, wheels: Path) -> list[str]:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", wheels],
        check=True,
        cwd=directory,
        capture_output=True,
        timeout=120,
    )
    (wheel,) = wheels.glob("*.whl")
    return sorted(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_in_the_image_is_whole(tmp_path: Path) -> None:
    """From what .dockerignore lets through, and of that what is copied."""
    lines = joined((ROOT / ".dockerignore").read_text(encoding="utf-8"))
    assert lines[0] == "*"
    context, source = tmp_path / "context", tmp_path / "source"
    for name in [line.removeprefix("!") for line in lines if line.startswith("!")]:
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, context / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, context / name)
    copied = [told.value.split() for told in dockerfile() if told.name == "COPY" and "--from" not in told.value]
    assert copied
    for *names, where in copied:
        for name in names:
            place = source / where / ("" if where.endswith(name) else name)
            if (context / name).is_dir():
                shutil.copytree(context / name, place)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(context / name, place)
    wheel = built(source, tmp_path / "wheels")
    assert wheel == built(ROOT, tmp_path / "others")
    assert "latent_memory/server/app.py" in wheel


def test_the_image_is_built_with_extras_that_there_are() -> None:
    extras = {*re.findall(r"EXTRAS=([\w,-]+)", last("ARG") + README)}
    assert "EXTRAS" in last("ARG")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional-dependencies]")[2]
    for extra in ",".join([last("ARG").partition("=")[2], *extras]).split(","):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra


@contextmanager
def running(arguments: list[str], store: Path) -> Iterator[str]:
    """Run the server, and return its address."""
    environment = {**os.environ, **image_environment(), "PATH": os.environ["PATH"], STORE_VARIABLE: str(store)}
    with subprocess.Popen(
        [PROGRAM, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=environment,
    ) as process:
        try:
            assert process.stderr is not None
            told = process.stderr.readline()
            at = re.search(r" at (http://\S+)", told)
            assert at is not None, told
            yield at[1]
        finally:
            process.terminate()
            process.communicate(timeout=60)
    if os.name != "nt":
        # Not a failure, after which systemd would start it again.
        assert process.returncode == 0


def test_what_the_image_starts_needs_a_key_and_is_healthy(cli: Cli, store: Path) -> None:
    entry, told = json.loads(last("ENTRYPOINT"))[1:], json.loads(last("CMD"))
    arguments = [*entry, *told]
    arguments[arguments.index(str(PORT))] = "0"
    refused = cli(*arguments, "--store", store)
    assert refused.returncode == 2
    assert "latent-memory keys create" in refused.stderr
    key = cli("keys", "create", "--all-scopes", "--store", store).stdout.strip()
    _, _, check = last("HEALTHCHECK").partition(" CMD ")
    _, *program = json.loads(check)
    with running(arguments, store) as address:
        port = address.rpartition(":")[2]

        def healthy() -> bool:
            here = [each.replace(f":{PORT}/", f":{port}/") for each in program]
            assert here != program
            return subprocess.run([sys.executable, *here], capture_output=True, timeout=60).returncode == 0

        assert healthy()
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30)
        assert error.value.code == 401
        error.value.close()
        asked = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Authorization": f"Bearer {key}"})
        with urllib.request.urlopen(asked, timeout=30) as answer:
            assert answer.status == 200
    assert not healthy()


# -- the service --------------------------------------------------------------------------------------------


def test_the_service_starts_the_server_for_this_machine() -> None:
    found = unit()
    program, name, *arguments = shlex.split(found["ExecStart"][0])
    assert (Path(program).name, name) == ("latent-memory", "serve")
    assert arguments.pop() == "$SERVE_OPTIONS"
    assert "SERVE_OPTIONS=" in found["Environment"]
    settings = served(arguments)
    assert Settings(host=settings["host"]).is_local
    assert settings["port"] == PORT
    # Where it may write, which is nowhere else.
    store = next(each for each in found["Environment"] if each.startswith(f"{STORE_VARIABLE}="))
    assert store.partition("=")[2].startswith(f"/var/lib/{found['StateDirectory'][0]}/")


def test_the_service_waits_until_all_is_written(cli: Cli) -> None:
    found = unit()
    assert int(found["TimeoutStopSec"][0]) >= 2 * Settings().shutdown_seconds
    assert found["Restart"] == ["on-failure"]
    # What no second try can mend.
    (code,) = found["RestartPreventExitStatus"]
    assert cli("serve", "--tls-cert", "only.pem").returncode == int(code)


def test_the_service_may_do_little() -> None:
    found = unit()
    assert found["User"] == found["Group"] == found["StateDirectory"]
    for name in ("NoNewPrivileges", "ProtectHome", "PrivateTmp", "PrivateDevices", "MemoryDenyWriteExecute"):
        assert found[name] == ["yes"], name
    assert found["ProtectSystem"] == ["strict"]
    assert found["CapabilityBoundingSet"] == found["AmbientCapabilities"] == [""]
    assert (found["UMask"], found["StateDirectoryMode"]) == (["0077"], ["0700"])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    text = (DEPLOY / "latent-memory.service").read_text(encoding="utf-8")
    place = tmp_path / "latent-memory.service"
    place.write_text(text.replace("/opt/latent-memory/bin/latent-memory", str(PROGRAM)), encoding="utf-8")
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", place], capture_output=True, text=True, timeout=60
    )
    told = [line for line in checked.stderr.splitlines() if "latent-memory" in line]
    assert (checked.returncode, told) == (0, [])


def test_nothing_that_runs_here_reports_to_others() -> None:
    assert image_environment()["ORT_DISABLE_TELEMETRY"] == "1"
    assert "ORT_DISABLE_TELEMETRY=1" in unit()["Environment"]


# -- the page -----------------------------------------------------------------------------------------------


def shown() -> list[tuple[str, str]]:
    """Return each line of the page's blocks, with the language."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return [(language, line.strip()) for language, block in blocks for line in joined(block)]


def test_each_option_on_the_page_is_one() -> None:
    known = {
        option
        for names in (("serve",), ("keys", "create"), ("keys", "list"), ("stats",))
        for parameter in command(*names).params
        for option in parameter.opts
    }
    options = {*re.findall(r"(?<![\w-])--[a-z][a-z-]*", README)}
    assert options - known == OTHERS
    assert {"--upstream", "--upstream-key-file", "--allow-host", "--tls-cert", "--tls-key", "--budget"} <= options


def test_each_command_on_the_page_is_understood() -> None:
    checked = []
    for _, line in shown():
        words = shlex.split(line.removeprefix("KEY=$(").removesuffix(")"))
        if "serve" in words:
            arguments = [word for word in words[words.index("serve") + 1 :] if not word.startswith("$")]
            served(arguments)
        elif line.startswith("SERVE_OPTIONS="):
            assert served(shlex.split(line.partition("=")[2]))["hosts"]
        elif words[:2] == ["docker", "run"] and "--host" in words:
            served(words[words.index("latent-memory") + 1 :])
        elif "keys" in words and words[words.index("keys") - 1].endswith("latent-memory"):
            name, *arguments = words[words.index("keys") + 1 :]
            with command("keys", name).make_context(name, arguments) as context:
                assert context.params["scopes"] or context.params["every_scope"]
        else:
            continue
        checked.append(line)
    assert len(checked) == 6, checked


def test_the_page_has_the_names_and_limits_of_the_server() -> None:
    settings = Settings()
    assert f"\n{UPSTREAM_KEY_VARIABLE}=" in README
    assert f"client_max_body_size {settings.most_bytes // MEBIBYTE}m;" in README
    waits = re.findall(r"proxy_read_timeout (\d+)s;", README)
    assert len(waits) == 1
    assert int(waits[0]) > settings.upstream_seconds
    assert f"({settings.shutdown_seconds:.0f} seconds)" in README
    assert f"user {last('USER').partition(':')[0]}" in README
    for place in (f"http://127.0.0.1:{PORT}", unit()["StateDirectory"][0], "/etc/latent-memory/environment"):
        assert place in README
    assert "-/etc/latent-memory/environment" in unit()["EnvironmentFile"]


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    for target in targets:
        assert (DEPLOY / target).exists(), target
