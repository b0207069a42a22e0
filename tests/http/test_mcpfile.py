"""The file of MCP servers is used as it is, or refused without showing what it holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from session_http.mcpfile import McpFileError, load


def written(directory: Path, content: object) -> Path:
    path = directory / "mcp.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_servers_are_found_by_name(tmp_path: Path) -> None:
    servers = {
        "tickets": {"command": "tickets-mcp", "args": ["--read-only"], "env": {"TOKEN": "x"}},
        "wiki": {"type": "http", "url": "https://wiki.example/mcp"},
    }
    assert load(written(tmp_path, {"mcpServers": servers})) == servers
    assert load(written(tmp_path, {"mcpServers": {}})) == {}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "JSON"),
        ([], "object"),
        ({}, "mcpServers"),
        ({"mcpServers": {}, "secret": "hunter2"}, "secret"),
        ({"mcpServers": {"a b": {"command": "hunter2"}}}, "a b"),
        ({"mcpServers": {"a": "hunter2"}}, "mcpServers.a"),
        ({"mcpServers": {"a": {"args": ["hunter2"]}}}, "a needs a `command` or a `url`"),
        ({"mcpServers": {"a": {"command": "hunter2", "url": "x"}}}, "a needs"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path: Path, content: object, why: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(McpFileError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert why in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(McpFileError, match="cannot be read: No such file"):
        load(tmp_path / "none.json")
