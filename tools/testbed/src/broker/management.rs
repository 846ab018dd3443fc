//! RabbitMQ's management interface: HTTP and JSON.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use ureq::{Agent, http::Request};

/// The default user of RabbitMQ, which the brokers that we start accept.
const USER_AND_PASSWORD_IN_BASE64: &str = "Z3Vlc3Q6Z3Vlc3Q=";

/// The management interface of one broker.
#[derive(Clone, Debug)]
pub(crate) struct Management {
    url: String,
    agent: Agent,
}

impl Management {
    pub(crate) fn new(host: &str, port: u16) -> Management {
        let agent = Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(20)))
            // The broker's own reason is in the body of a failed answer.
            .http_status_as_error(false)
            // The other side may close a kept connection at the moment when it is used again.
            .max_idle_connections(0)
            // A proxy for the outside network must not be used for this machine.
            .proxy(None)
            .build()
            .into();
        Management { url: format!("http://{host}:{port}"), agent }
    }

    /// Where a browser finds it.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Makes one request, for example `("PUT", "/api/vhosts/mine", None)`.
    pub(crate) async fn request(&self, method: &'static str, path: &str, body: Option<Value>) -> Result<Value> {
        let (management, path) = (self.clone(), path.to_owned());
        tokio::task::spawn_blocking(move || management.request_blocking(method, &path, body, Duration::from_secs(20)))
            .await?
    }

    /// The same without a runtime, for a destructor.
    pub(crate) fn request_blocking(
        &self,
        method: &'static str,
        path: &str,
        body: Option<Value>,
        timeout: Duration,
    ) -> Result<Value> {
        let what = || format!("{method} {}{path}", self.url);
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header("Authorization", format!("Basic {USER_AND_PASSWORD_IN_BASE64}"))
            .header("Content-Type", "application/json")
            .body(body.map_or_else(String::new, |body| body.to_string()))?;
        let request = self.agent.configure_request(request).timeout_global(Some(timeout)).build();
        let mut answer = self.agent.run(request).map_err(|error| anyhow!("{}: {error}", what()))?;
        let status = answer.status();
        let text = answer.body_mut().read_to_string().with_context(|| format!("{}: the answer breaks off", what()))?;
        if !status.is_success() {
            bail!("{}: {status} {text}", what());
        }
        if text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).with_context(|| format!("{}: not JSON: {text}", what()))
    }
}

/// A name as part of a path of the management interface: `/` becomes `%2F`.
pub(crate) fn path_segment(name: &str) -> String {
    name.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
