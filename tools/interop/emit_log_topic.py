"""Chapter 5, the producer: publishes one message with a routing key of dotted words."""

import os
import sys

import pika

URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672")

with pika.BlockingConnection(pika.URLParameters(URL)) as connection:
    channel = connection.channel()
    channel.exchange_declare(exchange="topic_logs", exchange_type="topic")
    key = sys.argv[1] if len(sys.argv) > 1 else "anonymous.info"
    message = " ".join(sys.argv[2:]) or "Hello World!"
    channel.basic_publish(exchange="topic_logs", routing_key=key, body=message)
    print(f" [x] Sent {key}:{message}")
