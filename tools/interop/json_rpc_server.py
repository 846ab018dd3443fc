"""Offers functions over JSON, with aio-pika: multiply, divide and sleep."""

import asyncio
import os

import aio_pika
from aio_pika.patterns import JsonRPC

URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672")


async def multiply(*, x, y):
    return x * y


async def divide(*, x, y):
    return x / y


async def sleep(*, seconds):
    await asyncio.sleep(seconds)


async def main():
    connection = await aio_pika.connect_robust(URL)
    async with connection:
        # RabbitMQ may refuse a shared queue that is not durable.
        rpc = await JsonRPC.create(await connection.channel(), durable=True)
        for function in (multiply, divide, sleep):
            await rpc.register(function.__name__, function, durable=True, auto_delete=True)
        print(" [x] Awaiting RPC requests")
        await asyncio.Future()


asyncio.run(main())
