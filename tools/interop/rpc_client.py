"""Chapter 6, the client: asks for a Fibonacci number. It treats error replies like other replies."""

import os
import sys
import uuid

import pika

URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672")

with pika.BlockingConnection(pika.URLParameters(URL)) as connection:
    channel = connection.channel()
    n = sys.argv[1] if len(sys.argv) > 1 else "30"
    reply_queue = channel.queue_declare(queue="", exclusive=True).method.queue
    correlation_id = str(uuid.uuid4())

    def received(channel, _method, properties, body):
        if properties.correlation_id == correlation_id:
            print(f" [.] Got {body.decode()}")
            channel.stop_consuming()

    channel.basic_consume(queue=reply_queue, on_message_callback=received, auto_ack=True)
    print(f" [x] Requesting fib({n})")
    channel.basic_publish(
        exchange="",
        routing_key="rpc_queue",
        properties=pika.BasicProperties(reply_to=reply_queue, correlation_id=correlation_id),
        body=n,
    )
    channel.start_consuming()
