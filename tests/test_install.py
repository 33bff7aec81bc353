"""What a plain install brings: hiredis and numpy, and nothing else that a lookup would need."""

from __future__ import annotations

import json
import subprocess
import venv
from pathlib import Path

from rawredis_llm import EmbeddedServer

ROOT = Path(__file__).parent.parent

LOOKUP = """
import sys
from rawredis_llm import Client, HashingEmbedder, SemanticCache
import rawredis_llm
assert "site-packages" in rawredis_llm.__file__, rawredis_llm.__file__
with Client(sys.argv[1]) as client:
    cache = SemanticCache(client, HashingEmbedder(), namespace="installed", max_distance=0.5)
    cache.store("How do I bake bread?", "With heat.")
    print(cache.lookup("How can I bake bread?").response)
    cache.drop()
"""


def test_a_plain_install_is_two_dependencies_and_can_look_up(
    tmp_path: Path, server: EmbeddedServer
) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", str(ROOT)], check=True, cwd=tmp_path)
    listed = subprocess.run(
        [*pip, "list", "--format=json"], check=True, capture_output=True, text=True
    )
    names = {entry["name"].lower() for entry in json.loads(listed.stdout)}
    assert names - {"pip", "setuptools"} == {"rawredis-llm", "hiredis", "numpy"}
    isolated = [python, "-I", "-c", LOOKUP, server.url]
    found = subprocess.run(isolated, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert found.stdout == "With heat.\n"
