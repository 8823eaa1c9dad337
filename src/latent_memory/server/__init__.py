"""The server: doors to one memory for applications, agents and people. Needs `pip install 'latent-memory[server]'`.

`app.create_app` makes the ASGI application, `running.serve` listens. The doors are `rest`, `proxy` and `mcp`; who may
come in is decided in `access`, before any of them.
"""
