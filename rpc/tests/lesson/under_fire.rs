//! Servers that are killed while thousands of calls are on their way.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use common::{ConnectionManager, rpc::RpcClient};
use testbed::Broker;
use tokio::task::JoinSet;

use crate::server;

/// 500 calls at a time and three servers, one of which is killed (as with `kill -9`) and replaced every now and then.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_calls_each_get_their_own_answer_while_servers_are_killed() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut servers = vec![server(&host).await?, server(&host).await?, server(&host).await?];
    let connections = ConnectionManager::new(host.url().parse()?);
    let client = Arc::new(RpcClient::new(&connections.channel("client").await?).await?);
    let (mut calls, mut answered) = (JoinSet::new(), 0);
    for number in 0..10_000_u32 {
        let client = client.clone();
        let n = number % 187;
        calls.spawn(async move { (n, client.call("rpc_queue", n.to_string(), Duration::from_secs(120)).await) });
        while calls.len() >= 500 || (number == 9_999 && !calls.is_empty()) {
            let (n, answer) = calls.join_next().await.context("no call")??;
            let (answer, expected) = (answer?.text(), fib(n).to_string());
            ensure!(answer == expected, "fib({n}) is {expected}, not {answer}");
            answered += 1;
            if answered % 1_000 == 0 {
                // Whichever it is, it has a request in hand: far more are waiting than there are servers.
                servers.remove(0).kill()?;
                servers.push(server(&host).await?);
            }
        }
    }
    ensure!(answered == 10_000 && client.pending() == 0, "{answered} answers, {} calls left", client.pending());
    Ok(())
}

fn fib(n: u32) -> u128 {
    (0..n).fold((0, 1), |(a, b): (u128, u128), _| (b, a.wrapping_add(b))).0
}
