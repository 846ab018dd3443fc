"""Sends tasks as JSON, with aio-pika: one task for each JSON object."""

import asyncio
import json
import os
import sys

import aio_pika
from aio_pika.patterns import JsonMaster

URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672")


async def main():
    queue, *tasks = sys.argv[1:]
    connection = await aio_pika.connect_robust(URL)
    async with connection:
        master = JsonMaster(await connection.channel())
        for task in map(json.loads, tasks):
            await master.create_task(queue, task)
            print(" [x] Sent", json.dumps(task, ensure_ascii=False, separators=(",", ":")))


asyncio.run(main())
