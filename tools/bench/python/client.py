"""aio-pika, for the benchmarks: does the work that its arguments name, as often as stdin says.

    python client.py publish NAME '{"exchange": "", "routing_key": "q", "size": 64, "window": 50}'

The broker's URL is in AMQP_URL. One line on stdin is a number of units to do; the answer on stdout is one line of JSON.
"""

import asyncio
import json
import logging
import os
import sys
import time
import uuid

import aio_pika

# We cause cut connections ourselves, so they are not logged.
logging.disable()

URL = os.environ["AMQP_URL"]


async def in_flight(window, count, unit):
    """Runs `unit` so many times, `window` of them at once."""
    left = count

    async def worker():
        nonlocal left
        while left > 0:
            left -= 1
            await unit()

    await asyncio.gather(*(worker() for _ in range(min(window, count))))


async def publish(name, exchange, routing_key, size, window):
    connection = await aio_pika.connect(URL)
    channel = await connection.channel(publisher_confirms=True)
    to = await channel.get_exchange(exchange, ensure=False) if exchange else channel.default_exchange
    body = b"x" * size

    async def unit():
        await to.publish(aio_pika.Message(body), routing_key, mandatory=False)

    async def run(count):
        begun = time.perf_counter()
        await in_flight(window, count, unit)
        return time.perf_counter() - begun

    return run


async def consume(name, prefetch):
    connection = await aio_pika.connect(URL)
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=prefetch)
    queue = await channel.get_queue(name, ensure=False)

    async def run(count):
        left, begun = count, None
        done = asyncio.get_running_loop().create_future()

        async def take(message):
            nonlocal left, begun
            begun = begun or time.perf_counter()
            await message.ack()
            left -= 1
            if left == 0:
                done.set_result(time.perf_counter() - begun)

        tag = await queue.consume(take)
        elapsed = await done
        await queue.cancel(tag)
        return elapsed

    return run


async def serve(name, window):
    """Echoes: replies unconfirmed, then acknowledges the request."""
    connection = await aio_pika.connect(URL)
    channel = await connection.channel(publisher_confirms=False)
    await channel.set_qos(prefetch_count=window)
    queue = await channel.get_queue(name, ensure=False)

    async def answer(request):
        reply = aio_pika.Message(request.body, correlation_id=request.correlation_id)
        await channel.default_exchange.publish(reply, request.reply_to, mandatory=False)
        await request.ack()

    await queue.consume(answer)


async def rpc(name, window, direct):
    await serve(name, window)
    connection = await aio_pika.connect(URL)
    channel = await connection.channel(publisher_confirms=False)
    if direct:
        replies = await channel.get_queue("amq.rabbitmq.reply-to", ensure=False)
    else:
        replies = await channel.declare_queue(exclusive=True)
    waiting = {}

    async def take(reply):
        waiting.pop(reply.correlation_id).set_result(reply.body)

    await replies.consume(take, no_ack=True)

    async def unit():
        number = str(uuid.uuid4())
        waiting[number] = asyncio.get_running_loop().create_future()
        reply = waiting[number]
        message = aio_pika.Message(b"x" * 64, correlation_id=number, reply_to=replies.name)
        await channel.default_exchange.publish(message, name, mandatory=False)
        await reply

    async def run(count):
        begun = time.perf_counter()
        await in_flight(window, count, unit)
        return time.perf_counter() - begun

    return run


async def connect(name):
    async def run(count):
        begun = time.perf_counter()
        for _ in range(count):
            connection = await aio_pika.connect(URL)
            channel = await connection.channel()
            await channel.close()
            await connection.close()
        return time.perf_counter() - begun

    return run


async def recover(name):
    connection = await aio_pika.connect_robust(URL)
    channel = await connection.channel(publisher_confirms=True)
    await channel.set_qos(prefetch_count=20)
    queue = await channel.get_queue(name)
    arrived = asyncio.Queue()

    async def take(message):
        await arrived.put(message.body)
        await message.ack()

    await queue.consume(take)

    async def publish_at_least_once(body):
        while True:
            try:
                async with asyncio.timeout(1):
                    return await channel.default_exchange.publish(aio_pika.Message(body), name, mandatory=False)
            except Exception:
                await asyncio.sleep(0.01)

    async def run(count):
        begun = time.perf_counter()
        for _ in range(count):
            mark = str(uuid.uuid4()).encode()
            publishing = asyncio.create_task(publish_at_least_once(mark))
            while await arrived.get() != mark:
                pass
            await publishing
        return time.perf_counter() - begun

    return run


def peak_kib():
    """The most memory that was resident; None where the system does not say."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    except OSError:
        pass
    try:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak // 1024 if sys.platform == "darwin" else peak
    except ImportError:
        return None


def say(**answer):
    print(json.dumps(answer), flush=True)


async def main():
    kind, name, arguments = sys.argv[1:]
    kinds = {"publish": publish, "consume": consume, "rpc": rpc, "connect": connect, "recover": recover}
    run = await kinds[kind](name, **json.loads(arguments))
    say(ready=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        cpu = time.process_time()
        seconds = await run(int(line))
        say(seconds=seconds, cpu=time.process_time() - cpu)
    say(peak_kib=peak_kib())
    # Nothing is closed here: the connections end with the process.
    os._exit(0)


asyncio.run(main())
