"""Works on tasks in JSON, with aio-pika: prints each task, and fails on tasks that contain a certain text."""

import argparse
import asyncio
import json
import os
import sys

import aio_pika
from aio_pika.patterns import JsonMaster

URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672")


async def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("queue")
    parser.add_argument("--fail-on")
    args = parser.parse_args()

    async def work(**task):
        text = json.dumps(task, ensure_ascii=False, separators=(",", ":"))
        print(text)
        if args.fail_on and args.fail_on in text:
            raise RuntimeError("failed as asked")

    connection = await aio_pika.connect_robust(URL)
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=1)
        await JsonMaster(channel).create_worker(args.queue, work, durable=True)
        print(" [*] Waiting for tasks. To exit press CTRL+C", file=sys.stderr)
        await asyncio.Future()


asyncio.run(main())
