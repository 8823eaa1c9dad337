"""What MCP's tools answer."""

from __future__ import annotations

from typing import Any

import mcp_types as types
from mcp import Client


def text_of(result: types.CallToolResult) -> str:
    (content,) = result.content
    assert isinstance(content, types.TextContent)
    return content.text


async def told(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """Call a tool that succeeds; return its data, which the client has checked against the tool's schema."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, text_of(result)
    assert isinstance(result.structured_content, dict)
    return result.structured_content
