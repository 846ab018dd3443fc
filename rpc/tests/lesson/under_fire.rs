//! Servers that are killed while thousands of calls are on their way.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use common::{ConnectionManager, rpc::JsonRpcClient};
use serde_json::json;
use testbed::Broker;
use tokio::task::JoinSet;

use crate::json::{example, server};

/// 500 calls at a time and three servers. After every 1,000 answers, the test kills one (as `kill -9` does) and starts
/// another.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_calls_each_get_their_own_answer_while_servers_are_killed() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut servers = vec![server(&host).await?, server(&host).await?, server(&host).await?];
    let connections = ConnectionManager::new(host.url().parse()?);
    let client = Arc::new(JsonRpcClient::new(&connections.channel("client").await?).await?);
    let (mut calls, mut answered) = (JoinSet::new(), 0);
    for number in 0..10_000_i64 {
        let client = client.clone();
        calls.spawn(async move {
            let arguments = json!({"x": number, "y": 3});
            (number, client.call::<i64>("multiply", &arguments, Duration::from_secs(120)).await)
        });
        while calls.len() >= 500 || (number == 9_999 && !calls.is_empty()) {
            let (number, answer) = calls.join_next().await.context("no call")??;
            ensure!(answer? == 3 * number, "the answer to {number} is that of another call");
            answered += 1;
            if answered % 1_000 == 0 {
                // Each server has requests that it has not answered: far more are waiting than there are servers.
                servers.remove(0).kill()?;
                // The new server need not print a line first: it begins to work when it is ready.
                servers.push(example("json_rpc_server").await?.url(host.url()).spawn()?);
            }
        }
    }
    ensure!(answered == 10_000 && client.pending() == 0, "{answered} answers, {} calls left", client.pending());
    Ok(())
}
