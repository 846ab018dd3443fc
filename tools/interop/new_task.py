"""Chapter 2, the producer: puts one task into the queue `task_queue`."""

import os
import sys

import pika

URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672")

with pika.BlockingConnection(pika.URLParameters(URL)) as connection:
    channel = connection.channel()
    channel.queue_declare(queue="task_queue", durable=True, arguments={"x-queue-type": "quorum"})
    task = " ".join(sys.argv[1:]) or "Hello World!"
    persistent = pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent)
    channel.basic_publish(exchange="", routing_key="task_queue", properties=persistent, body=task)
    print(f" [x] Sent {task}")
