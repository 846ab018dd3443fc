"""Chapter 2, the consumer: works on tasks, one second for each dot."""

import os
import time

import pika

URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672")

with pika.BlockingConnection(pika.URLParameters(URL)) as connection:
    channel = connection.channel()
    channel.queue_declare(queue="task_queue", durable=True, arguments={"x-queue-type": "quorum"})

    def work(channel, method, _properties, body):
        task = body.decode()
        print(f" [x] Received {task}")
        time.sleep(task.count("."))
        print(" [x] Done")
        channel.basic_ack(delivery_tag=method.delivery_tag)

    channel.basic_qos(prefetch_count=1)
    channel.basic_consume(queue="task_queue", on_message_callback=work)
    print(" [*] Waiting for messages. To exit press CTRL+C")
    channel.start_consuming()
