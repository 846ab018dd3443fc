//! The steps of the six chapters.

use clap::ValueEnum;

use super::steps::{Step, Steps};

/// What a receiver of chapters 1 and 2 prints first.
const WAITING: &str = " [*] Waiting for messages. To exit press CTRL+C";

/// What a receiver of chapters 3 to 5 prints first.
const WAITING_FOR_LOGS: &str = " [*] Waiting for logs. To exit press CTRL+C";

/// A chapter, by the name of its crate.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(super) enum Lesson {
    HelloWorld,
    WorkQueues,
    PubSub,
    Routing,
    Topics,
    Rpc,
}

impl Lesson {
    pub(super) fn number(self) -> usize {
        self as usize + 1
    }

    /// The name of its crate.
    pub(super) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    pub(super) fn title(self) -> &'static str {
        match self {
            Lesson::HelloWorld => "Hello World!",
            Lesson::WorkQueues => "Work Queues",
            Lesson::PubSub => "Publish/Subscribe",
            Lesson::Routing => "Routing",
            Lesson::Topics => "Topics",
            Lesson::Rpc => "RPC",
        }
    }

    /// What a learner should remember of it.
    pub(super) fn summary(self) -> &'static str {
        match self {
            Lesson::HelloWorld => "a queue keeps messages until they are read",
            Lesson::WorkQueues => "workers share tasks, and a task survives its worker",
            Lesson::PubSub => "a fanout exchange copies to every queue",
            Lesson::Routing => "a direct exchange looks at the whole key",
            Lesson::Topics => "a topic exchange looks at the words of the key",
            Lesson::Rpc => "a request names the queue for its reply",
        }
    }

    pub(super) async fn play(self, steps: &mut Steps<'_>) -> Step {
        match self {
            Lesson::HelloWorld => hello_world(steps).await,
            Lesson::WorkQueues => work_queues(steps).await,
            Lesson::PubSub => pub_sub(steps).await,
            Lesson::Routing => routing(steps).await,
            Lesson::Topics => topics(steps).await,
            Lesson::Rpc => rpc(steps).await,
        }
    }
}

async fn hello_world(steps: &mut Steps<'_>) -> Step {
    steps.drawing("(send) ───► [hello] ───► (receive)")?;
    steps.is_free("hello", "receive").await?;

    steps.say("First the consumer. It declares the queue `hello` and waits.").await?;
    steps.start("receive", "receive")?;
    steps.expect("receive", WAITING).await?;

    steps
        .say(
            "The producer declares the same queue, which changes nothing. It sends one message, and ends as soon as \
             RabbitMQ has confirmed it. The consumer may be faster.",
        )
        .await?;
    steps.run("send", "send", &[" [x] Sent 'Hello World!'"]).await?;
    steps.expect("receive", " [x] Received Hello World!").await?;
    steps.seen("The message went through the queue from one program to the other.")?;

    steps.say("Now the other way round: the consumer stops before a message is sent.").await?;
    steps.ctrl_c("receive").await?;
    steps.has_no_consumers("hello").await?;
    steps.run("send", "send", &[" [x] Sent 'Hello World!'"]).await?;

    steps.say("The queue keeps the message until a consumer comes.").await?;
    steps.start("receive", "receive")?;
    steps.expect("receive", WAITING).await?;
    steps.expect("receive", " [x] Received Hello World!").await?;
    steps.seen("The two programs do not have to run at the same time.")
}

async fn work_queues(steps: &mut Steps<'_>) -> Step {
    const WORKERS: [&str; 2] = ["worker 1", "worker 2"];
    steps.drawing(
        "
                                ┌──► (worker 1)
(new_task) ───► [task_queue] ───┤
                                └──► (worker 2)",
    )?;
    steps.is_free("task_queue", "worker").await?;

    steps.say("Two workers share one queue. Each worker takes one task at a time.").await?;
    for worker in WORKERS {
        steps.start(worker, "worker")?;
        steps.expect(worker, WAITING).await?;
    }

    // Each task is sent after the one before has been received, and one worker is busy two seconds longer than the other. So
    // the order is always the same.
    steps
        .say(
            "Now three tasks. Each dot is a second of work. Free workers take turns. When the third task comes, both \
             workers are busy. It waits until one of them is free.",
        )
        .await?;
    steps.run("new_task", "new_task First.", &[" [x] Sent First."]).await?;
    steps.expect("worker 1", " [x] Received First.").await?;
    steps.run("new_task", "new_task Second...", &[" [x] Sent Second..."]).await?;
    steps.expect("worker 2", " [x] Received Second...").await?;
    steps.run("new_task", "new_task Third.", &[" [x] Sent Third."]).await?;
    for line in [" [x] Done", " [x] Received Third.", " [x] Done"] {
        steps.expect("worker 1", line).await?;
    }
    steps.expect("worker 2", " [x] Done").await?;
    steps.seen("They took turns, and the third task went to the worker that was free first.")?;

    steps.say("The next worker is killed in the middle of its task, before it can acknowledge.").await?;
    steps.run("new_task", "new_task Fourth..", &[" [x] Sent Fourth.."]).await?;
    let victim = steps.expect_of_one(&WORKERS, " [x] Received Fourth..").await?;
    let heir = if victim == "worker 1" { "worker 2" } else { "worker 1" };
    steps.kill(&victim).await?;
    steps.expect(heir, " [x] Received Fourth..").await?;
    steps.expect(heir, " [x] Done").await?;
    steps.seen(&format!("The task was not lost with {victim}: RabbitMQ gave it to {heir}."))
}

async fn pub_sub(steps: &mut Steps<'_>) -> Step {
    const RECEIVERS: [&str; 3] = ["receiver 1", "receiver 2", "receiver 3"];
    steps.drawing(
        "
                          ┌──► [Q1] ──► (receiver 1)
(emit_log) ───► <logs> ───┼──► [Q2] ──► (receiver 2)
                          ├──► [Q3] ──► (receiver 3)
                          └╌╌► [Q4] ╌╌► (latecomer)",
    )?;

    steps
        .say(
            "Every receiver declares a queue of its own, which is deleted when the receiver ends. It binds the queue to \
             the exchange `logs`, a fanout exchange.",
        )
        .await?;
    for receiver in RECEIVERS {
        steps.start(receiver, "receive_logs")?;
        steps.expect(receiver, WAITING_FOR_LOGS).await?;
    }

    steps.say("The producer sends one message to the exchange. It knows nothing about the queues.").await?;
    steps.run("emit_log", "emit_log", &[" [x] Sent info: Hello World!"]).await?;
    for receiver in RECEIVERS {
        steps.expect(receiver, " [x] info: Hello World!").await?;
    }
    steps.seen("One message sent, three received: a copy for each queue.")?;

    steps.say("A receiver that starts late has missed that message. The next message is for all four.").await?;
    steps.start("latecomer", "receive_logs")?;
    steps.expect("latecomer", WAITING_FOR_LOGS).await?;
    let warning = "warning: the disk is nearly full";
    steps.run("emit_log", &format!("emit_log {warning}"), &[&format!(" [x] Sent {warning}")]).await?;
    for receiver in RECEIVERS.into_iter().chain(["latecomer"]) {
        steps.expect(receiver, &format!(" [x] {warning}")).await?;
    }
    steps.seen("The latecomer got only the second message: an exchange keeps no messages.")
}

async fn routing(steps: &mut Steps<'_>) -> Step {
    /// Severity, text and receivers. The last message is for both: if C1 had got another one, it would have come before.
    const LOGS: [(&str, &str, &[&str]); 3] = [
        ("info", "Somebody has logged in", &["C2"]),
        ("warning", "The disk is nearly full", &["C2"]),
        ("error", "The disk is full", &["C1", "C2"]),
    ];
    steps.drawing(
        "
                         ┌─ error ──────► [Q1] ──► (C1)
(P) ──► <direct_logs> ───┼─ error ────┐
                         ├─ info ─────┼─► [Q2] ──► (C2)
                         └─ warning ──┘",
    )?;

    steps.say("C1 binds its queue to the exchange with one key, C2 with three.").await?;
    for (receiver, severities) in [("C1", "error"), ("C2", "info warning error")] {
        steps.start(receiver, &format!("receive_logs_direct {severities}"))?;
        steps.expect(receiver, WAITING_FOR_LOGS).await?;
    }

    steps.say("Three messages. The routing key of each is its severity.").await?;
    for (severity, text, receivers) in LOGS {
        let sent = format!(" [x] Sent {severity}:{text}");
        steps.run("P", &format!("emit_log_direct {severity} {text}"), &[&sent]).await?;
        for receiver in receivers {
            steps.expect(receiver, &format!(" [x] {severity}:{text}")).await?;
        }
    }
    steps.seen("C1 got only the error, C2 got all three: routing key and binding key must be equal.")
}

async fn topics(steps: &mut Steps<'_>) -> Step {
    /// Routing keys and receivers. The last message is for both: if one of them had got another message, or one message
    /// twice, it would have come before.
    const ANIMALS: [(&str, &[&str]); 9] = [
        ("quick.orange.rabbit", &["C1", "C2"]),
        ("quick.orange.fox", &["C1"]),
        ("lazy.brown.fox", &["C2"]),
        ("lazy.pink.rabbit", &["C2"]),
        ("quick.brown.fox", &[]),
        ("orange", &[]),
        ("quick.orange.new.rabbit", &[]),
        ("lazy.orange.new.rabbit", &["C2"]),
        ("lazy.orange.elephant", &["C1", "C2"]),
    ];
    steps.drawing(
        "
                        ┌─ *.orange.* ───► [Q1] ──► (C1)
(P) ──► <topic_logs> ───┼─ *.*.rabbit ─┬─► [Q2] ──► (C2)
                        └─ lazy.# ─────┘",
    )?;

    steps
        .say(
            "A routing key consists of words with dots between them: speed, colour, animal. In a binding key `*` stands \
             for one word, and `#` for any number of words.",
        )
        .await?;
    for (receiver, binding_keys) in [("C1", "*.orange.*"), ("C2", "*.*.rabbit lazy.#")] {
        steps.start(receiver, &format!("receive_logs_topic {binding_keys}"))?;
        steps.expect(receiver, WAITING_FOR_LOGS).await?;
    }

    steps.say("Nine animals: which receiver gets which message?").await?;
    for (key, receivers) in ANIMALS {
        steps.run("P", &format!("emit_log_topic {key}"), &[&format!(" [x] Sent {key}:Hello World!")]).await?;
        for receiver in receivers {
            steps.expect(receiver, &format!(" [x] {key}:Hello World!")).await?;
        }
    }

    let rows = ANIMALS.map(|(key, _)| {
        let copies = ["C1", "C2"].map(|receiver| steps.copies(receiver, &format!(" [x] {key}:Hello World!")));
        let remark = match key {
            _ if copies == [0, 0] => "dropped",
            "lazy.pink.rabbit" => "one copy",
            _ => "",
        };
        let [first, second] = copies.map(|copies| if copies == 0 { "·".to_owned() } else { "●".repeat(copies) });
        vec![key.to_owned(), first, second, remark.to_owned()]
    });
    steps.table(&[&["", "Q1", "Q2"], &["", "*.orange.*", "*.*.rabbit"], &["routing key", "", "lazy.#"]], &rows)?;
    steps.seen("Each got the messages that match its keys. lazy.pink.rabbit matches two keys, and came once.")
}

async fn rpc(steps: &mut Steps<'_>) -> Step {
    steps.drawing(
        "
             request
(rpc_client) ───────► [rpc_queue] ───────► (rpc_server)
     ▲                                          │
     └────────────── [reply queue] ◄────────────┘
                                    reply",
    )?;
    steps.is_free("rpc_queue", "rpc_server").await?;

    steps.say("The server waits for requests, as a worker does for tasks.").await?;
    steps.start("rpc_server", "rpc_server")?;
    steps.expect("rpc_server", " [x] Awaiting RPC requests").await?;

    steps
        .say(
            "The request names the queue for its reply (`reply_to`), and has an id that comes back with the reply \
             (`correlation_id`).",
        )
        .await?;
    steps.run("rpc_client", "rpc_client 30", &[" [x] Requesting fib(30)", " [.] Got 832040"]).await?;
    steps.expect("rpc_server", " [.] fib(30)").await?;
    steps.seen("The reply has come back to the client that asked.")?;

    steps.say("Now a request that is not a number, and one that is.").await?;
    steps
        .run_failing(
            "rpc_client",
            "rpc_client abc",
            &[" [x] Requesting fib(abc)"],
            "Error: the server answered with an error: fib takes a whole number from 0 to 186",
        )
        .await?;
    steps.run("rpc_client", "rpc_client 10", &[" [x] Requesting fib(10)", " [.] Got 55"]).await?;
    steps.expect("rpc_server", " [.] fib(10)").await?;
    steps.seen("The client got an error (┆ is standard error). The server keeps running.")?;

    steps.say("What happens without a server? The client waits, but not forever.").await?;
    steps.ctrl_c("rpc_server").await?;
    steps.has_no_consumers("rpc_queue").await?;
    steps
        .run_failing(
            "rpc_client",
            "rpc_client 30 --timeout 2",
            &[" [x] Requesting fib(30)"],
            "Error: the call to queue `rpc_queue` failed: no answer within 2 s (is a server running, and not too busy?)",
        )
        .await?;
    steps.seen("A call without an answer ends with a clear error.")
}
