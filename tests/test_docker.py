"""The container file: what it promises is read from it, no container is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

FILE = Path(__file__).parents[1] / "docker" / "compose.yml"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """Return the file as Compose reads it."""
    parsed: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return parsed


@pytest.fixture
def redis(compose: dict[str, Any]) -> dict[str, Any]:
    """Return the one service."""
    assert list(compose["services"]) == ["redis"]
    service: dict[str, Any] = compose["services"]["redis"]
    return service


def test_the_image_is_an_official_redis_with_search_pinned_by_its_minor_version(
    redis: dict[str, Any],
) -> None:
    name, _, tag = redis["image"].partition(":")
    assert name == "redis"
    major, minor = map(int, tag.split("-")[0].split(".")[:2])
    assert (major, minor) >= (8, 0)


def test_it_is_healthy_when_redis_answers(redis: dict[str, Any]) -> None:
    check = redis["healthcheck"]
    assert "redis-cli ping" in " ".join(check["test"])
    assert {"interval", "timeout", "retries"} <= set(check)


def test_data_outlive_the_container(compose: dict[str, Any], redis: dict[str, Any]) -> None:
    (volume,) = redis["volumes"]
    source, _, target = volume.partition(":")
    assert target == "/data"
    assert source in compose["volumes"]
    command = redis["command"]
    assert command[command.index("--appendonly") + 1] == "yes"
    assert redis["restart"] == "unless-stopped"


def test_the_port_is_open_to_this_machine_only(redis: dict[str, Any]) -> None:
    assert redis["ports"] == ["127.0.0.1:6379:6379"]


def test_the_password_is_optional_and_not_in_the_file(redis: dict[str, Any]) -> None:
    command = redis["command"]
    assert command[command.index("--requirepass") + 1] == "${REDIS_PASSWORD:-}"


def test_the_file_says_how_to_start() -> None:
    assert "docker compose -f docker/compose.yml up -d --wait" in FILE.read_text()
