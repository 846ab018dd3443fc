//! The six chapters, as scripts.

use clap::ValueEnum;

use super::stage::{Act, Stage};

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

    /// What is to be kept of it.
    pub(super) fn moral(self) -> &'static str {
        match self {
            Lesson::HelloWorld => "a queue keeps messages until they are read",
            Lesson::WorkQueues => "tasks are shared out, and survive their worker",
            Lesson::PubSub => "a fanout exchange copies to every queue",
            Lesson::Routing => "a direct exchange looks at the whole key",
            Lesson::Topics => "a topic exchange looks at the words of the key",
            Lesson::Rpc => "a request names the queue for its reply",
        }
    }

    pub(super) async fn play(self, stage: &mut Stage<'_>) -> Act {
        match self {
            Lesson::HelloWorld => hello_world(stage).await,
            Lesson::WorkQueues => work_queues(stage).await,
            Lesson::PubSub => pub_sub(stage).await,
            Lesson::Routing => routing(stage).await,
            Lesson::Topics => topics(stage).await,
            Lesson::Rpc => rpc(stage).await,
        }
    }
}

async fn hello_world(stage: &mut Stage<'_>) -> Act {
    stage.drawing("(send) ───► [hello] ───► (receive)")?;
    stage.is_free("hello", "receive").await?;

    stage.say("First the consumer. It declares the queue `hello`, and waits.").await?;
    stage.start("receive", "receive")?;
    stage.expect("receive", WAITING).await?;

    stage
        .say(
            "The producer declares the same queue, which does no harm. It sends one message, and ends as soon as \
             RabbitMQ has confirmed it: the consumer may be faster.",
        )
        .await?;
    stage.run("send", "send", &[" [x] Sent 'Hello World!'"]).await?;
    stage.expect("receive", " [x] Received Hello World!").await?;
    stage.seen("The message went through the queue from one program to the other.")?;

    stage.say("Now the other way round: the consumer ends; then a message is sent.").await?;
    stage.ctrl_c("receive").await?;
    stage.nobody_reads_from("hello").await?;
    stage.run("send", "send", &[" [x] Sent 'Hello World!'"]).await?;

    stage.say("The queue keeps it until a consumer comes.").await?;
    stage.start("receive", "receive")?;
    stage.expect("receive", WAITING).await?;
    stage.expect("receive", " [x] Received Hello World!").await?;
    stage.seen("The two programs need not run at the same time.")
}

async fn work_queues(stage: &mut Stage<'_>) -> Act {
    const WORKERS: [&str; 2] = ["worker 1", "worker 2"];
    stage.drawing(
        "
                                ┌──► (worker 1)
(new_task) ───► [task_queue] ───┤
                                └──► (worker 2)",
    )?;
    stage.is_free("task_queue", "worker").await?;

    stage.say("Two workers, one queue. Each worker takes one task at a time.").await?;
    for worker in WORKERS {
        stage.start(worker, "worker")?;
        stage.expect(worker, WAITING).await?;
    }

    // Each task is sent when the one before has been received, and one worker is busy for longer than the other by
    // two seconds: nothing is left to chance.
    stage
        .say(
            "Three tasks, each dot a second of work. Workers that are free take turns. When the third task comes, \
             both are busy: it waits for the first to be free.",
        )
        .await?;
    stage.run("new_task", "new_task First.", &[" [x] Sent First."]).await?;
    stage.expect("worker 1", " [x] Received First.").await?;
    stage.run("new_task", "new_task Second...", &[" [x] Sent Second..."]).await?;
    stage.expect("worker 2", " [x] Received Second...").await?;
    stage.run("new_task", "new_task Third.", &[" [x] Sent Third."]).await?;
    for line in [" [x] Done", " [x] Received Third.", " [x] Done"] {
        stage.expect("worker 1", line).await?;
    }
    stage.expect("worker 2", " [x] Done").await?;
    stage.seen("They took turns, and the third task went to the one that was free.")?;

    stage.say("The next worker is killed in the middle of its task, before it can acknowledge.").await?;
    stage.run("new_task", "new_task Fourth..", &[" [x] Sent Fourth.."]).await?;
    let victim = stage.expect_of_one(&WORKERS, " [x] Received Fourth..").await?;
    let heir = if victim == "worker 1" { "worker 2" } else { "worker 1" };
    stage.kill(&victim).await?;
    stage.expect(heir, " [x] Received Fourth..").await?;
    stage.expect(heir, " [x] Done").await?;
    stage.seen(&format!("The task did not die with {victim}: RabbitMQ gave it to {heir}."))
}

async fn pub_sub(stage: &mut Stage<'_>) -> Act {
    const RECEIVERS: [&str; 3] = ["receiver 1", "receiver 2", "receiver 3"];
    stage.drawing(
        "
                          ┌──► [Q1] ──► (receiver 1)
(emit_log) ───► <logs> ───┼──► [Q2] ──► (receiver 2)
                          ├──► [Q3] ──► (receiver 3)
                          └╌╌► [Q4] ╌╌► (latecomer)",
    )?;

    stage
        .say(
            "Every receiver has a queue of its own, which goes when the receiver goes, and binds it to the exchange \
             `logs`, a fanout.",
        )
        .await?;
    for receiver in RECEIVERS {
        stage.start(receiver, "receive_logs")?;
        stage.expect(receiver, WAITING_FOR_LOGS).await?;
    }

    stage.say("The producer sends one message to the exchange. It knows of no queue.").await?;
    stage.run("emit_log", "emit_log", &[" [x] Sent info: Hello World!"]).await?;
    for receiver in RECEIVERS {
        stage.expect(receiver, " [x] info: Hello World!").await?;
    }
    stage.seen("One message sent, three received: a copy for each queue.")?;

    stage.say("A latecomer has missed that message. The next one is for all four.").await?;
    stage.start("latecomer", "receive_logs")?;
    stage.expect("latecomer", WAITING_FOR_LOGS).await?;
    let warning = "warning: the disk is nearly full";
    stage.run("emit_log", &format!("emit_log {warning}"), &[&format!(" [x] Sent {warning}")]).await?;
    for receiver in RECEIVERS.into_iter().chain(["latecomer"]) {
        stage.expect(receiver, &format!(" [x] {warning}")).await?;
    }
    stage.seen("The latecomer got the second message alone: an exchange keeps nothing.")
}

async fn routing(stage: &mut Stage<'_>) -> Act {
    /// Severity, text and who gets it. The last is for both: had C1 got another one, it would have come before.
    const LOGS: [(&str, &str, &[&str]); 3] = [
        ("info", "Somebody has logged in", &["C2"]),
        ("warning", "The disk is nearly full", &["C2"]),
        ("error", "The disk is full", &["C1", "C2"]),
    ];
    stage.drawing(
        "
                         ┌─ error ──────► [Q1] ──► (C1)
(P) ──► <direct_logs> ───┼─ error ────┐
                         ├─ info ─────┼─► [Q2] ──► (C2)
                         └─ warning ──┘",
    )?;

    stage.say("C1 binds its queue to the exchange with one key, C2 with three.").await?;
    for (receiver, severities) in [("C1", "error"), ("C2", "info warning error")] {
        stage.start(receiver, &format!("receive_logs_direct {severities}"))?;
        stage.expect(receiver, WAITING_FOR_LOGS).await?;
    }

    stage.say("Three messages. The routing key of each is its severity.").await?;
    for (severity, text, receivers) in LOGS {
        let sent = format!(" [x] Sent {severity}:{text}");
        stage.run("P", &format!("emit_log_direct {severity} {text}"), &[&sent]).await?;
        for receiver in receivers {
            stage.expect(receiver, &format!(" [x] {severity}:{text}")).await?;
        }
    }
    stage.seen("C1 got the error alone, C2 all three: the keys must be equal.")
}

async fn topics(stage: &mut Stage<'_>) -> Act {
    /// Routing keys, and who gets the message. The last is for both: had one of them got anything else, or the same
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
    stage.drawing(
        "
                        ┌─ *.orange.* ───► [Q1] ──► (C1)
(P) ──► <topic_logs> ───┼─ *.*.rabbit ─┬─► [Q2] ──► (C2)
                        └─ lazy.# ─────┘",
    )?;

    stage
        .say(
            "The keys are words with dots between them: speed, colour, animal. In a binding key `*` stands for one \
             word, `#` for any number of words.",
        )
        .await?;
    for (receiver, binding_keys) in [("C1", "*.orange.*"), ("C2", "*.*.rabbit lazy.#")] {
        stage.start(receiver, &format!("receive_logs_topic {binding_keys}"))?;
        stage.expect(receiver, WAITING_FOR_LOGS).await?;
    }

    stage.say("Nine animals: who gets which?").await?;
    for (key, receivers) in ANIMALS {
        stage.run("P", &format!("emit_log_topic {key}"), &[&format!(" [x] Sent {key}:Hello World!")]).await?;
        for receiver in receivers {
            stage.expect(receiver, &format!(" [x] {key}:Hello World!")).await?;
        }
    }

    let rows = ANIMALS.map(|(key, _)| {
        let copies = ["C1", "C2"].map(|receiver| stage.copies(receiver, &format!(" [x] {key}:Hello World!")));
        let remark = match key {
            _ if copies == [0, 0] => "dropped",
            "lazy.pink.rabbit" => "one copy",
            _ => "",
        };
        let [first, second] = copies.map(|copies| if copies == 0 { "·".to_owned() } else { "●".repeat(copies) });
        vec![key.to_owned(), first, second, remark.to_owned()]
    });
    stage.table(&[&["", "Q1", "Q2"], &["", "*.orange.*", "*.*.rabbit"], &["routing key", "", "lazy.#"]], &rows)?;
    stage.seen("Each got what fits its keys; lazy.pink.rabbit came once, although two keys fit.")
}

async fn rpc(stage: &mut Stage<'_>) -> Act {
    stage.drawing(
        "
             request
(rpc_client) ───────► [rpc_queue] ───────► (rpc_server)
     ▲                                          │
     └────────────── [reply queue] ◄────────────┘
                                    reply",
    )?;
    stage.is_free("rpc_queue", "rpc_server").await?;

    stage.say("The server waits for requests, as a worker does for tasks.").await?;
    stage.start("rpc_server", "rpc_server")?;
    stage.expect("rpc_server", " [x] Awaiting RPC requests").await?;

    stage
        .say(
            "The request says to which queue the reply should go (`reply_to`), and has a number that comes back with \
             the reply (`correlation_id`).",
        )
        .await?;
    stage.run("rpc_client", "rpc_client 30", &[" [x] Requesting fib(30)", " [.] Got 832040"]).await?;
    stage.expect("rpc_server", " [.] fib(30)").await?;
    stage.seen("The answer has come back to the one who asked.")?;

    stage.say("Now a request that makes no sense, and one more that does.").await?;
    stage
        .run_failing(
            "rpc_client",
            "rpc_client abc",
            &[" [x] Requesting fib(abc)"],
            "Error: the server answered with an error: fib takes a whole number from 0 to 186",
        )
        .await?;
    stage.run("rpc_client", "rpc_client 10", &[" [x] Requesting fib(10)", " [.] Got 55"]).await?;
    stage.expect("rpc_server", " [.] fib(10)").await?;
    stage.seen("The client was told the error (┆ is standard error); the server goes on.")?;

    stage.say("And when no server is there? The client waits, but not for ever.").await?;
    stage.ctrl_c("rpc_server").await?;
    stage.nobody_reads_from("rpc_queue").await?;
    stage
        .run_failing(
            "rpc_client",
            "rpc_client 30 --timeout 2",
            &[" [x] Requesting fib(30)"],
            "Error: the call to queue `rpc_queue` failed: no answer within 2 s (is a server running, and not too busy?)",
        )
        .await?;
    stage.seen("A call that nobody answers ends with a clear error.")
}
