//! What chapter 5 promises, shown by its programs on a real RabbitMQ.

mod bad_input;

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use serde_json::json;
use testbed::{Broker, Program, Running, VirtualHost, lesson};

const WAITING: &str = " [*] Waiting for logs. To exit press CTRL+C";

const EMIT_LOG_TOPIC: &str = env!("CARGO_BIN_EXE_emit_log_topic");
const RECEIVE_LOGS_TOPIC: &str = env!("CARGO_BIN_EXE_receive_logs_topic");

fn emit_log_topic(host: &VirtualHost<'_>) -> Program {
    Program::new(EMIT_LOG_TOPIC).url(host.url())
}

fn receive_logs_topic(host: &VirtualHost<'_>, binding_keys: &[&str]) -> Program {
    Program::new(RECEIVE_LOGS_TOPIC).url(host.url()).args(binding_keys)
}

/// Publishes a log message. When this returns, every queue with a matching binding has it.
async fn emit(host: &VirtualHost<'_>, key: &str, message: &str) -> Result<()> {
    let sent = emit_log_topic(host).args([key, message]).run().await?;
    assert_eq!(sent.stdout, format!(" [x] Sent {key}:{message}\n"));
    assert_eq!(sent.stderr, "");
    assert_eq!(sent.code, Some(0));
    Ok(())
}

/// Starts a receiver. When this returns, it is subscribed.
async fn receiver(host: &VirtualHost<'_>, binding_keys: &[&str]) -> Result<Running> {
    let mut receiver = receive_logs_topic(host, binding_keys).spawn()?;
    receiver.expect(WAITING).await?;
    Ok(receiver)
}

/// The bindings of the chapter's exchange: the queue and the binding key of each.
async fn bindings(host: &VirtualHost<'_>) -> Result<BTreeSet<(String, String)>> {
    let bindings = host.get("/api/exchanges/{vhost}/topic_logs/bindings/source").await?;
    let bindings = bindings.as_array().context("no list of bindings")?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    Ok(bindings.iter().map(|binding| (text(&binding["destination"]), text(&binding["routing_key"]))).collect())
}

/// Sends a message with each of `keys`. Checks that a receiver bound with `binding_keys` gets exactly those in
/// `expected`, in order.
async fn gets_of(binding_keys: &[&str], keys: &[&str], expected: &[&str]) -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    // The last message must reach the receiver with any binding. It shows that nothing else came before.
    let mut all = binding_keys.to_vec();
    all.push("the.very.end");
    let mut receiver = receiver(&host, &all).await?;
    for key in keys {
        emit(&host, key, "a message").await?;
    }
    emit(&host, "the.very.end", "").await?;
    for key in expected {
        receiver.expect(&format!(" [x] {key}:a message")).await?;
    }
    receiver.expect(" [x] the.very.end:").await
}

#[tokio::test]
async fn the_receiver_prints_key_and_message() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = receiver(&host, &["kern.*"]).await?;
    emit(&host, "kern.critical", "A critical kernel error").await?;
    receiver.expect(" [x] kern.critical:A critical kernel error").await?;

    receiver.interrupt()?;
    let end = receiver.wait().await?;
    assert_eq!(end.stdout, format!("{WAITING}\n [x] kern.critical:A critical kernel error\n"));
    assert_eq!(end.stderr, "");
    Ok(())
}

#[tokio::test]
async fn without_arguments_it_is_anonymous_info_and_hello_world() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = receiver(&host, &["anonymous.info"]).await?;
    let sent = emit_log_topic(&host).run().await?;
    assert_eq!(sent.stdout, " [x] Sent anonymous.info:Hello World!\n");
    receiver.expect(" [x] anonymous.info:Hello World!").await
}

#[tokio::test]
async fn one_argument_is_the_key() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = receiver(&host, &["kern.critical"]).await?;
    let sent = emit_log_topic(&host).arg("kern.critical").run().await?;
    assert_eq!(sent.stdout, " [x] Sent kern.critical:Hello World!\n");
    receiver.expect(" [x] kern.critical:Hello World!").await
}

#[tokio::test]
async fn the_words_after_the_key_are_joined() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = receiver(&host, &["kern.critical"]).await?;
    let sent = emit_log_topic(&host).args(["kern.critical", "A critical", "kernel", "error"]).run().await?;
    assert_eq!(sent.stdout, " [x] Sent kern.critical:A critical kernel error\n");
    receiver.expect(" [x] kern.critical:A critical kernel error").await
}

/// The table of the tutorial: speed, colour and kind. Q1 wants the orange animals, Q2 all rabbits and all lazy animals.
#[tokio::test]
async fn the_animals_go_where_the_tutorial_says() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut q1 = receiver(&host, &["*.orange.*"]).await?;
    let mut q2 = receiver(&host, &["*.*.rabbit", "lazy.#"]).await?;
    let (to_q1, to_q2) = (true, true);
    for (animal, is_for_q1, is_for_q2) in [
        ("quick.orange.rabbit", to_q1, to_q2),
        ("lazy.orange.elephant", to_q1, to_q2),
        ("quick.orange.fox", to_q1, false),
        ("lazy.brown.fox", false, to_q2),
        // Two bindings of Q2 match: one copy comes.
        ("lazy.pink.rabbit", false, to_q2),
        ("quick.brown.fox", false, false),
        ("orange", false, false),
        ("quick.orange.new.rabbit", false, false),
        ("lazy.orange.new.rabbit", false, to_q2),
        // For both: it shows that nothing else came before.
        ("lazy.orange.end", to_q1, to_q2),
    ] {
        emit(&host, animal, "an animal").await?;
        for (queue, is_for_it) in [(&mut q1, is_for_q1), (&mut q2, is_for_q2)] {
            if is_for_it {
                queue.expect(&format!(" [x] {animal}:an animal")).await?;
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_message_that_fits_two_binding_keys_comes_once() -> Result<()> {
    gets_of(&["*.*.rabbit", "lazy.#", "lazy.pink.rabbit"], &["lazy.pink.rabbit"], &["lazy.pink.rabbit"]).await
}

#[tokio::test]
async fn a_bare_hash_gets_everything_like_a_fanout_exchange() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = receiver(&host, &["#"]).await?;
    for key in ["", "one", "one.two", "a.b.c.d.e.f", ".", "..", "with space.and ü"] {
        emit(&host, key, "a message").await?;
        receiver.expect(&format!(" [x] {key}:a message")).await?;
    }
    Ok(())
}

#[tokio::test]
async fn without_wildcards_it_is_like_a_direct_exchange() -> Result<()> {
    let keys = ["kern", "kern.critical", "kern.critical.disk", "Kern.critical", "kern.criticals", ""];
    gets_of(&["kern.critical"], &keys, &["kern.critical"]).await
}

#[tokio::test]
async fn a_star_is_exactly_one_word() -> Result<()> {
    let keys = ["kern", "kern.critical", "kern.critical.disk", "user.critical"];
    tokio::try_join!(
        gets_of(&["kern.*"], &keys, &["kern.critical"]),
        gets_of(&["*.critical"], &keys, &["kern.critical", "user.critical"]),
        gets_of(&["*"], &keys, &["kern"]),
        gets_of(&["*.*.*"], &keys[..3], &["kern.critical.disk"]),
    )
    .map(drop)
}

#[tokio::test]
async fn a_hash_is_any_number_of_words_also_none() -> Result<()> {
    let keys = ["lazy", "lazy.fox", "lazy.brown.fox", "lazyish", "quick.lazy", "quick.lazy.fox"];
    tokio::try_join!(
        gets_of(&["lazy.#"], &keys, &["lazy", "lazy.fox", "lazy.brown.fox"]),
        gets_of(&["#.lazy"], &keys, &["lazy", "quick.lazy"]),
        gets_of(&["#.lazy.#"], &keys, &["lazy", "lazy.fox", "lazy.brown.fox", "quick.lazy", "quick.lazy.fox"]),
    )
    .map(drop)
}

#[tokio::test]
async fn a_message_whose_key_matches_no_binding_is_lost_without_an_error() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    emit(&host, "kern.critical", "to nobody").await?;
    let mut receiver = receiver(&host, &["#"]).await?;
    emit(&host, "kern.critical", "to somebody").await?;
    receiver.expect(" [x] kern.critical:to somebody").await
}

#[tokio::test]
async fn both_programs_declare_the_same_topic_exchange() -> Result<()> {
    let broker = Broker::shared().await?;
    let (by_sender, by_receiver) = (broker.virtual_host().await?, broker.virtual_host().await?);
    emit(&by_sender, "kern.critical", "a message").await?;
    let _receiver = receiver(&by_receiver, &["#"]).await?;
    for host in [by_sender, by_receiver] {
        let exchange = host.get("/api/exchanges/{vhost}/topic_logs").await?;
        assert_eq!(exchange["type"], "topic");
        assert_eq!(exchange["durable"], false);
        assert_eq!(exchange["auto_delete"], false);
        assert_eq!(exchange["arguments"], json!({}));
    }
    Ok(())
}

#[tokio::test]
async fn a_receiver_has_one_exclusive_queue_with_a_binding_for_each_key() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let _receiver = receiver(&host, &["kern.*", "*.critical", "#.disk"]).await?;
    let bindings = bindings(&host).await?;
    let queues: BTreeSet<_> = bindings.iter().map(|(queue, _)| queue).collect();
    let keys: Vec<_> = bindings.iter().map(|(_, key)| key).collect();
    assert_eq!(queues.len(), 1, "{bindings:?}");
    assert_eq!(keys, ["#.disk", "*.critical", "kern.*"]);

    let name = queues.first().context("no queue")?;
    assert!(name.starts_with("amq.gen-"), "{name}");
    let queue = host.queue(name).await?;
    assert_eq!(queue["exclusive"], true);
    assert_eq!(queue["durable"], false);
    Ok(())
}

#[tokio::test]
async fn a_receiver_that_loses_its_connection_binds_all_its_keys_again() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = receiver(&host, &["kern.*", "*.critical"]).await?;
    let before = bindings(&host).await?;
    host.close_all_connections().await?;
    receiver.stderr_line_containing("the connection to RabbitMQ was lost").await?;
    // The program binds its new queue some time after it has reconnected, and prints nothing then.
    let renewed = async || bindings(&host).await.ok().filter(|now| now.len() == 2 && now.is_disjoint(&before));
    lesson::until("a new queue with two bindings", renewed).await?;
    emit(&host, "user.critical", "after the loss").await?;
    receiver.expect(" [x] user.critical:after the loss").await
}
