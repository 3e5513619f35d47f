"""Bodies of requests under way are bounded together, whatever the queue has room for."""

from __future__ import annotations

import asyncio

import httpx

from c2v_engine.serving.http.app import create_app
from c2v_engine.serving.http.options import HttpOptions

BODY = {"inputs": "a" * 987}  # 1000 bytes


def test_bodies_beyond_the_room_are_429_until_others_are_answered(service):
    app = create_app(service, HttpOptions(("fake",), max_body_bytes=1000))

    async def run():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://fake") as client:
            service.hang = True
            waiting = [asyncio.ensure_future(client.post("/embed", json=BODY)) for _ in range(32)]
            while len(service.asked) < len(waiting):
                await asyncio.sleep(0)
            refused = await client.post("/embed", json=BODY)
            watched = await client.get("/health")
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
            service.hang = False
            return refused, watched, await client.post("/embed", json=BODY)

    refused, watched, answered = asyncio.run(run())
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.json()["error_type"] == "Overloaded"
    assert watched.status_code == 200
    assert answered.status_code == 200
