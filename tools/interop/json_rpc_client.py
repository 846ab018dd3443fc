"""Calls a function by its name, over JSON, with aio-pika, and prints its result."""

import argparse
import asyncio
import json
import os
import sys

import aio_pika
from aio_pika.patterns import JsonRPC

URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672")


async def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method")
    parser.add_argument("arguments", type=json.loads)
    parser.add_argument("--timeout", type=float, default=10)
    args = parser.parse_args()
    connection = await aio_pika.connect_robust(URL)
    async with connection:
        # RabbitMQ may refuse a shared queue that is not durable.
        rpc = await JsonRPC.create(await connection.channel(), durable=True)
        try:
            result = await rpc.call(args.method, args.arguments, expiration=args.timeout)
        except Exception as error:
            # If the server answered with an error, the second argument is what it sent.
            sys.exit(f"Error: {type(error).__name__}: {error.args}")
        print(json.dumps(result, ensure_ascii=False))


asyncio.run(main())
