//! What the pictures show.

use crate::{
    Picture,
    sequence::Sequence,
    svg::Kind::{Consumer, Exchange, Producer, Queue},
    topology::Topology,
};

/// All pictures, in the order of the chapters.
pub fn all() -> Vec<Picture> {
    vec![hello_world(), work_queues(), work_queues_sequence(), pub_sub(), routing(), topics(), rpc(), rpc_sequence()]
}

fn hello_world() -> Picture {
    let mut picture = Topology::new(
        "hello_world",
        "One producer, one queue, one consumer",
        "The producer send publishes with the routing key hello. The default exchange puts the message into the queue \
         hello. The consumer receive takes it from there.",
    );
    let send = picture.node(Producer, "send", "producer", (0, 0.0));
    let default = picture.node(Exchange, "", "default exchange", (1, 0.0));
    let hello = picture.node(Queue, "hello", "durable queue", (2, 0.0));
    let receive = picture.node(Consumer, "receive", "consumer", (3, 0.0));
    picture.key(send, default, "hello", "routing key");
    picture.arrow(default, hello);
    picture.arrow(hello, receive);
    picture.draw()
}

fn work_queues() -> Picture {
    let mut picture = Topology::new(
        "work_queues",
        "One queue, several workers",
        "The producer new_task publishes with the routing key task_queue. The default exchange puts the task into the \
         durable queue task_queue. Each task goes to one of the two consumers, both the program worker, each with a \
         prefetch of 1.",
    );
    let new_task = picture.node(Producer, "new_task", "producer", (0, 0.5));
    let default = picture.node(Exchange, "", "default exchange", (1, 0.5));
    let queue = picture.node(Queue, "task_queue", "durable queue", (2, 0.5));
    picture.key(new_task, default, "task_queue", "routing key");
    picture.arrow(default, queue);
    for row in [0.0, 1.0] {
        let worker = picture.node(Consumer, "worker", "consumer, prefetch 1", (3, row));
        picture.arrow(queue, worker);
    }
    picture.draw()
}

fn work_queues_sequence() -> Picture {
    const NEW_TASK: usize = 0;
    const QUEUE: usize = 1;
    const FIRST: usize = 2;
    const SECOND: usize = 3;
    Sequence::new(
        "work_queues-sequence",
        "A task outlives its worker",
        "new_task publishes the task A......; the queue confirms it once it is safe, and delivers it to worker 1. The next \
         task, B., goes to worker 2, which works and acknowledges: the queue forgets it, and worker 2 gets the next one, C. \
         Worker 1 is killed before it can acknowledge. When worker 2 has acknowledged C., the queue delivers A...... again, \
         marked as redelivered, to worker 2, which works and acknowledges.",
        195.0,
        &[(Producer, "new_task"), (Queue, "task_queue"), (Consumer, "worker 1"), (Consumer, "worker 2")],
    )
    .message(NEW_TASK, QUEUE, "publish", "A......")
    .answer(QUEUE, NEW_TASK, "confirm: it is safe")
    .message(QUEUE, FIRST, "deliver", "A......")
    .message(NEW_TASK, QUEUE, "publish", "B.")
    .message(QUEUE, SECOND, "deliver", "B.")
    .answer(SECOND, QUEUE, "ack: forget it")
    .message(NEW_TASK, QUEUE, "publish", "C.")
    .message(QUEUE, SECOND, "deliver", "C.")
    .end(FIRST, "killed, no ack")
    .answer(SECOND, QUEUE, "ack: forget it")
    .message(QUEUE, SECOND, "deliver, redelivered", "A......")
    .answer(SECOND, QUEUE, "ack: forget it")
    .draw()
}

fn pub_sub() -> Picture {
    let mut picture = Topology::new(
        "pub_sub",
        "A fanout exchange copies every message to every queue",
        "The producer emit_log publishes to the fanout exchange logs. Two queues are bound to it, each named by the \
         broker and exclusive to its consumer. Each of the two consumers, both the program receive_logs, gets a copy of \
         every message.",
    );
    let emit = picture.node(Producer, "emit_log", "producer", (0, 0.5));
    let logs = picture.node(Exchange, "logs", "fanout exchange", (1, 0.5));
    picture.arrow(emit, logs);
    for (row, name) in [(0.0, "amq.gen-JzTY…"), (1.0, "amq.gen-W5xk…")] {
        let queue = picture.node(Queue, name, "exclusive queue", (2, row));
        let receiver = picture.node(Consumer, "receive_logs", "consumer", (3, row));
        picture.arrow(logs, queue);
        picture.arrow(queue, receiver);
    }
    picture.draw()
}

fn routing() -> Picture {
    let mut picture = Topology::new(
        "routing",
        "A direct exchange compares the routing key with the binding keys",
        "The producer emit_log_direct publishes to the direct exchange direct_logs, with a severity as the routing key. \
         The queue of the first consumer is bound with the key error; that of the second one with the keys info, warning \
         and error. Both consumers are the program receive_logs_direct. An error goes to both, an info or a warning to \
         the second one only.",
    );
    let emit = picture.node(Producer, "emit_log_direct", "producer", (0, 0.6));
    let logs = picture.node(Exchange, "direct_logs", "direct exchange", (1, 0.6));
    picture.arrow(emit, logs);
    let bound: [(f32, &str, &[&str]); 2] =
        [(0.0, "amq.gen-Q1…", &["error"]), (1.2, "amq.gen-Q2…", &["info", "warning", "error"])];
    for (row, name, keys) in bound {
        let queue = picture.node(Queue, name, "exclusive queue", (2, row));
        let receiver = picture.node(Consumer, "receive_logs_direct", "consumer", (3, row));
        picture.bindings(logs, queue, keys);
        picture.arrow(queue, receiver);
    }
    picture.draw()
}

fn topics() -> Picture {
    let mut picture = Topology::new(
        "topics",
        "A topic exchange compares keys word by word",
        "The producer emit_log_topic publishes to the topic exchange topic_logs, with a routing key of dotted words. The \
         queue of the first consumer is bound with the key *.orange.*; that of the second one with the keys *.*.rabbit \
         and lazy.#. Both consumers are the program receive_logs_topic. A star stands for one word, a hash for any \
         number of words.",
    );
    let emit = picture.node(Producer, "emit_log_topic", "producer", (0, 0.55));
    let logs = picture.node(Exchange, "topic_logs", "topic exchange", (1, 0.55));
    picture.arrow(emit, logs);
    let bound: [(f32, &str, &[&str]); 2] =
        [(0.0, "amq.gen-Q1…", &["*.orange.*"]), (1.1, "amq.gen-Q2…", &["*.*.rabbit", "lazy.#"])];
    for (row, name, keys) in bound {
        let queue = picture.node(Queue, name, "exclusive queue", (2, row));
        let receiver = picture.node(Consumer, "receive_logs_topic", "consumer", (3, row));
        picture.bindings(logs, queue, keys);
        picture.arrow(queue, receiver);
    }
    picture.draw()
}

fn rpc() -> Picture {
    let mut picture = Topology::new(
        "rpc",
        "A request names the queue for its reply",
        "rpc_client publishes a request with the routing key rpc_queue; it names its own exclusive reply queue in \
         reply_to. rpc_server consumes the requests from the queue rpc_queue and publishes each reply with the routing \
         key that reply_to says. rpc_client consumes the replies from its queue. Both ways lead through the default \
         exchange.",
    );
    let client = picture.node(Producer, "rpc_client", "producer and consumer", (0, 0.5));
    let requests = picture.node(Queue, "rpc_queue", "durable queue: requests", (1, 0.0));
    let server = picture.node(Consumer, "rpc_server", "consumer and producer", (2, 0.5));
    let replies = picture.node(Queue, "amq.gen-Xa2…", "exclusive queue: replies", (1, 1.0));
    picture.key(client, requests, "rpc_queue", "routing key");
    picture.arrow(requests, server);
    picture.key(server, replies, "amq.gen-Xa2…", "reply_to");
    picture.arrow(replies, client);
    picture.draw()
}

fn rpc_sequence() -> Picture {
    const CLIENT: usize = 0;
    const REPLIES: usize = 1;
    const REQUESTS: usize = 2;
    const SERVER: usize = 3;
    Sequence::new(
        "rpc-sequence",
        "A request and its reply",
        "rpc_client declares its reply queue and consumes from it. It publishes the request 30 to rpc_queue, with the \
         name of the reply queue in reply_to and an id in correlation_id. rpc_server receives it, computes, and publishes \
         832040 to the reply queue with the same correlation_id. When that is confirmed it acknowledges the request. \
         rpc_client receives the reply and compares the correlation_id with the one it waits for.",
        195.0,
        &[(Producer, "rpc_client"), (Queue, "reply queue"), (Queue, "rpc_queue"), (Consumer, "rpc_server")],
    )
    .message(CLIENT, REPLIES, "declare, consume", "")
    .message(CLIENT, REQUESTS, "publish", "30, reply_to, correlation_id")
    .message(REQUESTS, SERVER, "deliver", "30")
    .note(SERVER, "computes fib(30)")
    .message(SERVER, REPLIES, "publish", "832040, correlation_id")
    .answer(REPLIES, SERVER, "confirm: it is safe")
    .answer(SERVER, REQUESTS, "ack: forget it")
    .message(REPLIES, CLIENT, "deliver", "832040")
    .note(CLIENT, "correlation_id fits")
    .draw()
}
