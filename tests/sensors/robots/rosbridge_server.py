"""A server that speaks the rosbridge protocol 2.0, and the robot behind it: tells a state, keeps what is published."""

import asyncio
import json
import threading
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve

STATE = {
    "/joint_states": {
        "header": {"stamp": {"sec": 1, "nanosec": 2}, "frame_id": ""},
        "name": ["elbow", "shoulder"],
        "position": [-0.2, 0.1],
        "velocity": [0.6, 0.5],
        "effort": [],
    },
    "/tool_pose": {
        "header": {"stamp": {"sec": 1, "nanosec": 2}, "frame_id": "base_link"},
        "pose": {"position": {"x": 0.5, "y": 0.1, "z": 0.2}, "orientation": {"x": 0, "y": 0, "z": 0, "w": 1}},
    },
}


class RosbridgeServer:
    """Runs in a thread; `port` is known once it is started."""

    def __init__(self) -> None:
        self.advertised: dict[str, str] = {}
        self.published: list[tuple[str, dict[str, Any]]] = []
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self._thread.start()
        self._started.wait()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._thread.join()
        self._loop.close()

    async def _run(self) -> None:
        self._server: Server = await serve(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self._started.set()
        await self._server.wait_closed()

    async def _serve(self, connection: ServerConnection) -> None:
        senders = []
        async for text in connection:
            message = json.loads(text)
            if message["op"] == "advertise":
                self.advertised[message["topic"]] = message["type"]
            elif message["op"] == "publish":
                self.published.append((message["topic"], message["msg"]))
            elif message["op"] == "subscribe":
                senders.append(asyncio.create_task(self._tell(connection, message["topic"])))
        for sender in senders:
            sender.cancel()

    async def _tell(self, connection: ServerConnection, topic: str) -> None:
        while True:
            await connection.send(json.dumps({"op": "publish", "topic": topic, "msg": STATE[topic]}))
            await asyncio.sleep(0.01)
