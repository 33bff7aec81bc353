"""The container files: what they promise is read from them, no container is started."""

from __future__ import annotations

import re
import shutil
import subprocess
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docker"
NAMES = ["cluster.yml", "compose.yml", "sentinel.yml", "valkey.yml"]
SINGLE = pytest.mark.parametrize("name", ["compose.yml", "valkey.yml"])
# Files whose services share one network -> the service that owns it, and others' ports by theirs.
SHARED = pytest.mark.parametrize(
    ("name", "owner"), [("cluster.yml", "cluster"), ("sentinel.yml", "sentinel-1")]
)
_, _, SECTION = (
    (ROOT / "README.md").read_text(encoding="utf-8").partition("### Servers in containers\n")
)
SECTION = re.split("\n##+ ", SECTION)[0]


def read(name: str) -> dict[str, Any]:
    """Return a file as Compose reads it."""
    parsed: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
    return parsed


def services(name: str) -> dict[str, dict[str, Any]]:
    """Return what a file runs."""
    found: dict[str, dict[str, Any]] = read(name)["services"]
    return found


def published(name: str) -> dict[int, int]:
    """Return the ports of this machine and what they lead to; all are of the loopback only."""
    found: dict[int, int] = {}
    for port in chain.from_iterable(one.get("ports", ()) for one in services(name).values()):
        host, ours, theirs = port.split(":")
        assert host == "127.0.0.1"  # else it is open to the network, past most firewalls
        first, last = ours.partition("-")[::2]
        start = int(theirs.partition("-")[0])
        for n in range(int(last or first) - int(first) + 1):
            found[int(first) + n] = start + n
    return found


def scripts(name: str) -> list[str]:
    """Return what shells are to run in a file's containers, as they get it from Compose."""
    asked = []
    for one in services(name).values():
        words = [*one.get("entrypoint", ()), *one.get("command", ())]
        asked += [words[2]] if words[:1] == ["sh"] else []
        kind, script = one["healthcheck"]["test"]
        assert kind == "CMD-SHELL"
        asked.append(script)
    return [script.replace("$$", "$") for script in asked]


# -- of all of them ----------------------------------------------------------------------------


def test_these_are_all() -> None:
    assert sorted(path.name for path in FOLDER.glob("*.yml")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_images_are_pinned_in_all_parts_of_their_version(name: str) -> None:
    for service in services(name).values():
        image, _, tag = service["image"].partition(":")
        assert image == ("valkey/valkey-bundle" if name == "valkey.yml" else "redis")
        assert re.fullmatch(r"\d+\.\d+\.\d+", tag)
        assert int(tag.split(".")[0]) >= 8  # with search


@pytest.mark.parametrize("name", NAMES)
def test_each_service_says_whether_it_is_well_by_an_answer(name: str) -> None:
    for service in services(name).values():
        check = service["healthcheck"]
        assert re.search(r"(redis|valkey)-cli .*\| grep -q", " ".join(check["test"]))
        assert {"interval", "timeout", "retries", "start_period"} <= set(check)


@pytest.mark.parametrize("name", NAMES)
def test_what_shells_are_to_run_is_their_language(name: str) -> None:
    for script in scripts(name):
        subprocess.run(["sh", "-n"], input=script.encode(), check=True)


@pytest.mark.parametrize("name", NAMES)
def test_each_file_says_how_to_start_it(name: str) -> None:
    text = f"docker compose -f docker/{name} up -d --wait"
    assert text in (FOLDER / name).read_text(encoding="utf-8")
    assert text in SECTION


def test_all_can_run_beside_each_other() -> None:
    ports = [port for name in NAMES for port in published(name)]
    assert len(ports) == len(set(ports))
    assert len({read(name)["name"] for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_compose_takes_it(name: str) -> None:
    docker = shutil.which("docker")
    asked = [docker or "", "compose", "version"]
    if docker is None or subprocess.run(asked, capture_output=True, check=False).returncode:
        pytest.skip("there is no `docker compose`")
    command = [docker, "compose", "-f", str(FOLDER / name), "config", "--quiet"]
    subprocess.run(command, check=True, timeout=30)


# -- one server --------------------------------------------------------------------------------


@SINGLE
def test_a_single_server_keeps_its_data(name: str) -> None:
    (service,) = services(name).values()
    (volume,) = service["volumes"]
    source, _, target = volume.partition(":")
    assert target == "/data"
    assert source in read(name)["volumes"]
    command = service["command"]
    assert command[0].endswith("-server")  # or the image's script does not load the modules
    assert command[command.index("--appendonly") + 1] == "yes"
    assert service["restart"] == "unless-stopped"


@SINGLE
def test_the_readme_tells_the_port_of_a_single_server(name: str) -> None:
    ((ours, theirs),) = published(name).items()
    assert theirs == 6379
    assert f"`redis://localhost:{ours}`" in SECTION


def test_the_password_is_optional_and_not_in_the_file() -> None:
    command = services("compose.yml")["redis"]["command"]
    assert command[command.index("--requirepass") + 1] == "${REDIS_PASSWORD:-}"


# -- several servers, which tell of each other -------------------------------------------------


@SHARED
def test_what_they_tell_of_each_other_is_true_on_this_machine(name: str, owner: str) -> None:
    """All in one network, whose ports lead to the same ports: 127.0.0.1 is right everywhere."""
    found = services(name)
    assert all(
        one.get("network_mode") == f"service:{owner}" for n, one in found.items() if n != owner
    )
    listening = [int(one["environment"]["PORT"]) for one in found.values() if "environment" in one]
    assert published(name) == {port: port for port in listening}
    told = re.findall(r"127\.0\.0\.1[: ](\d+)", " ".join(scripts(name)))
    told += re.findall(
        r"127\.0\.0\.1[: ](\d+)", str([one.get("environment") for one in found.values()])
    )
    assert set(map(int, told)) <= set(listening)


@SHARED
def test_nothing_that_is_stored_is_kept(name: str, owner: str) -> None:
    assert "volumes" not in read(name)
    servers = [one for key, one in services(name).items() if key.startswith("node-")]
    assert len(servers) == 3
    assert all("docker-entrypoint.sh redis-server" in one["entrypoint"][2] for one in servers)
    assert all("--save ''" in one["entrypoint"][2] for one in servers)
    assert all(one["image"] == services(name)[owner]["image"] for one in servers)


@SHARED
def test_the_readme_tells_their_ports(name: str, owner: str) -> None:
    del owner
    first = re.search(r"127\.0\.0\.1:(\d+)` to `(\d+)", _row(name))
    assert first
    seeds = range(int(first[1]), int(first[2]) + 1)
    assert set(seeds) <= set(published(name))
    assert len(seeds) == 3


def _row(name: str) -> str:
    return next(line for line in SECTION.splitlines() if f"docker/{name} " in line)


def test_the_cluster_is_of_three_primaries_and_made_once() -> None:
    (script,) = (one for one in scripts("cluster.yml") if "--cluster create" in one)
    assert script.count("127.0.0.1:") == 3
    assert "--cluster-replicas" not in script
    assert "cluster_known_nodes:1" in script  # a second start finds it as it was


def test_two_of_three_sentinels_agree() -> None:
    watching = [one for one in services("sentinel.yml").values() if "ckquorum" in str(one)]
    assert len(watching) == 3
    assert all("monitor mymaster 127.0.0.1 6381 2\n" in one["entrypoint"][2] for one in watching)
    replicas = [one for one in services("sentinel.yml").values() if "REPLICA" in str(one)]
    told = [one["environment"]["REPLICA"] for one in replicas]
    assert sorted(told) == ["", *["--replicaof 127.0.0.1 6381"] * 2]


# -- the command line --------------------------------------------------------------------------


@pytest.fixture
def dockerfile() -> dict[str, list[str]]:
    """Return what the Dockerfile says by its instructions."""
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            instruction, _, rest = line.partition(" ")
            found.setdefault(instruction, []).append(rest)
    return found


def test_the_command_line_is_pinned_and_runs_as_nobody_special(
    dockerfile: dict[str, list[str]],
) -> None:
    (base,) = dockerfile["FROM"]
    assert re.fullmatch(r"python:3\.13\.\d+-slim-[a-z]+", base)
    assert dockerfile["USER"] == ["rawredis"]
    assert "useradd --create-home --uid 10001 rawredis" in dockerfile["RUN"][0]
    assert dockerfile["ENTRYPOINT"] == ['["rawredis-llm"]']
    assert 'rawredis-llm = "rawredis_llm.cli:main"' in (ROOT / "pyproject.toml").read_text()


def test_the_build_is_given_what_it_copies_and_no_more(dockerfile: dict[str, list[str]]) -> None:
    copied = [source for line in dockerfile["COPY"] for source in line.split()[:-1]]
    assert all((ROOT / source).exists() for source in copied)
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored
    assert sorted(copied) == sorted(line[1:] for line in ignored if line.startswith("!"))


def test_the_readme_says_how_to_build_it() -> None:
    assert "docker build -t rawredis-llm -f docker/Dockerfile ." in SECTION
