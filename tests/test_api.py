"""What programs and language models are offered: names, types, what each argument means, and the answers themselves."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gradio_client import Client
from serving import HTTP, serve

from fastviz.ui.api import ARGUMENTS

ROOT = Path(__file__).parents[1]
ASKED = dict(seed=3, steps=2, size=128, methods="full,tome")
NAMES = [line.strip().partition(":")[0] for line in ARGUMENTS.splitlines() if ": " in line]


def test_two_endpoints_are_public_and_say_what_they_take(server):
    told = HTTP.get(f"{server.address}/gradio_api/info").json()["named_endpoints"]
    assert sorted(told) == ["/compare", "/measure"]
    for endpoint in told.values():
        assert endpoint["description"].startswith(("Runs", "Tells")) and "Parameters" not in endpoint["description"]
        assert [each["parameter_name"] for each in endpoint["parameters"]] == NAMES
        assert [each["python_type"]["type"] for each in endpoint["parameters"]][:2] == ["str", "int"]


def test_figures_without_pictures(server):
    client = Client(server.address, verbose=False)
    told = client.predict("a cat", api_name="/measure", **ASKED)
    assert told["state"] == "finished" and [row["stack"] for row in told["rows"]] == ["full", "tome"] and len(json.dumps(told)) < 5000
    assert told["rows"][1]["speedup"] > 0 and told["rows"][1]["metrics"]["psnr"]["value"] > 0
    refused = client.predict("a cat", api_name="/measure", **ASKED | {"size": 5})
    assert refused["state"] == "refused" and refused["field"] == "size" and refused["rows"] == []


def test_a_language_model_measures(tmp_path, tiny_folder):
    pytest.importorskip("mcp", reason="the MCP client is not installed: pip install 'gradio[mcp]'")
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async def ask(address):
        async with streamablehttp_client(f"{address}/gradio_api/mcp/") as (read, write, _), ClientSession(read, write) as session:
            await session.initialize()
            tools = {tool.name.rpartition("_")[2] or tool.name: tool for tool in (await session.list_tools()).tools}
            answer = await session.call_tool(tools["measure"].name, {"prompt": "a cat", **ASKED})
            return tools, answer

    with serve(tmp_path, ("tests/tiny_app.py", "--mcp"), TINY=str(tiny_folder)) as server:
        tools, answer = asyncio.run(ask(server.address))
    assert sorted(tools) == ["compare", "measure"]
    schema = tools["measure"].inputSchema["properties"]
    assert list(schema) == NAMES and all(each["description"] for each in schema.values())
    assert not answer.isError and '"finished"' in answer.content[0].text.replace("'", '"') and "tome" in answer.content[0].text


def test_tools_are_not_offered_past_a_password():
    done = subprocess.run([sys.executable, "app.py", "--mcp"], cwd=ROOT, env={**os.environ, "FASTVIZ_PASSWORD": "open sesame"},
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "--mcp knows no password" in done.stderr
