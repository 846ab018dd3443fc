//! Finds the Docker daemon: Docker's own, a rootless one, Docker Desktop, or Podman, which has the same interface.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use testcontainers::bollard::{API_DEFAULT_VERSION, Docker};
use tokio::time::timeout;

/// How long a daemon may take to answer. One on this machine answers within milliseconds.
const ANSWER: Duration = Duration::from_secs(5);

/// How long one request may take without an answer. While an image is fetched, the daemon reports progress all the time.
const REQUEST_SECONDS: u64 = 120;

/// Docker's named pipe.
const WINDOWS: &str = "npipe:////./pipe/docker_engine";

/// A daemon that answers.
#[derive(Clone)]
pub(super) struct Daemon {
    pub(super) docker: Docker,
    /// In the form of `DOCKER_HOST`: `unix:///var/run/docker.sock`.
    pub(super) address: String,
}

impl Daemon {
    /// Looks where the `docker` command looks: at `DOCKER_HOST`, or else at the active
    /// [context](https://docs.docker.com/engine/manage-resources/contexts/). Without either, tries the sockets that Docker
    /// and Podman have by default, and uses the first that answers.
    pub(super) async fn find() -> Result<Daemon> {
        if env::var("DOCKER_TLS_VERIFY").is_ok_and(|on| on == "1") {
            bail!("DOCKER_TLS_VERIFY is set, and Docker over TLS is not supported here");
        }
        let chosen = match set("DOCKER_HOST") {
            Some(address) => Some((address, "DOCKER_HOST".to_owned())),
            None => active_context()?.map(|(name, address)| (address, format!("the Docker context `{name}`"))),
        };
        if let Some((address, by)) = chosen {
            return Daemon::connect(&address)
                .await
                .map_err(|error| anyhow!("no daemon answers at {address}, which {by} names ({error})"));
        }
        let mut silent = Vec::new();
        for address in usual_addresses() {
            match Daemon::connect(&address).await {
                Ok(daemon) => return Ok(daemon),
                Err(error) => silent.push((address, error)),
            }
        }
        // Most of these sockets do not exist. The error names those that exist, or only the first.
        let exists = |address: &str| Path::new(address.trim_start_matches("unix://")).exists();
        let first = silent.iter().position(|(address, _)| exists(address)).unwrap_or(0);
        let named = silent.iter().enumerate().filter(|(at, (address, _))| *at == first || exists(address));
        let named: Vec<String> = named.map(|(_, (address, error))| format!("{address} ({error})")).collect();
        bail!("no daemon answers at {}, nor at any other usual place", named.join(", nor at "))
    }

    /// The error is the root cause, such as "no such file" or "permission denied".
    async fn connect(address: &str) -> Result<Daemon> {
        let docker = client(address)?;
        match timeout(ANSWER, docker.ping()).await {
            Ok(Ok(_)) => Ok(Daemon { docker, address: address.to_owned() }),
            Ok(Err(error)) => Err(anyhow!("{}", anyhow::Error::from(error).root_cause())),
            Err(_) => bail!("no answer after {} s", ANSWER.as_secs()),
        }
    }

    /// Whether testcontainers uses this daemon, too. It does not look at contexts or at Podman. It takes `DOCKER_HOST` as an
    /// address even if it is empty.
    pub(super) fn is_that_of_testcontainers(&self) -> bool {
        let usual = || {
            let socket = docker_sockets().into_iter().find(|socket| socket.exists());
            if cfg!(windows) { Some(WINDOWS.to_owned()) } else { socket.map(|socket| unix(&socket)) }
        };
        env::var("DOCKER_HOST").ok().or_else(usual).is_some_and(|address| address == self.address)
    }

    /// The machine on which containers' ports are published, if it is not this one.
    pub(super) fn remote_host(&self) -> Option<String> {
        let url = url::Url::parse(&self.address).ok()?;
        matches!(url.scheme(), "tcp" | "http").then(|| url.host_str().map(str::to_owned))?
    }
}

fn client(address: &str) -> Result<Docker> {
    let (scheme, _) =
        address.split_once("://").context("this is not an address: an address begins with `unix://` or `tcp://`")?;
    match scheme {
        "tcp" | "http" => Ok(Docker::connect_with_http(address, REQUEST_SECONDS, API_DEFAULT_VERSION)?),
        #[cfg(unix)]
        "unix" => {
            // Without this check the error for a missing socket would repeat its name.
            fs::metadata(address.trim_start_matches("unix://"))?;
            Ok(Docker::connect_with_unix(address, REQUEST_SECONDS, API_DEFAULT_VERSION)?)
        }
        #[cfg(windows)]
        "npipe" => Ok(Docker::connect_with_named_pipe(address, REQUEST_SECONDS, API_DEFAULT_VERSION)?),
        other => {
            bail!("`{other}://` is not supported here; forward its socket and set DOCKER_HOST to the forwarded one")
        }
    }
}

/// The active context, from `DOCKER_CONTEXT` or `docker context use`, and its address. `None` for the context `default`,
/// which means the usual sockets.
fn active_context() -> Result<Option<(String, String)>> {
    let directory = set("DOCKER_CONFIG").map(PathBuf::from).or_else(|| Some(home()?.join(".docker")));
    let Some(directory) = directory else { return Ok(None) };
    let name = set("DOCKER_CONTEXT").or_else(|| current_context(&directory));
    let Some(name) = name.filter(|name| name != "default") else { return Ok(None) };
    let address = context_address(&directory, &name)
        .with_context(|| format!("the Docker context `{name}` is not in {}", directory.display()))?;
    Ok(Some((name, address)))
}

fn current_context(directory: &Path) -> Option<String> {
    Some(json(&directory.join("config.json"))?["currentContext"].as_str()?.to_owned())
}

/// Each context has its own directory, whose name is a hash of the context's name.
fn context_address(directory: &Path, name: &str) -> Option<String> {
    let contexts = fs::read_dir(directory.join("contexts").join("meta")).ok()?;
    let mut contexts = contexts.flatten().filter_map(|entry| json(&entry.path().join("meta.json")));
    let context = contexts.find(|context| context["Name"] == name)?;
    Some(context["Endpoints"]["docker"]["Host"].as_str()?.to_owned())
}

fn json(file: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(file).ok()?).ok()
}

/// The addresses at which daemons listen by default.
fn usual_addresses() -> Vec<String> {
    if cfg!(windows) {
        return vec![WINDOWS.to_owned()];
    }
    let runtime = set("XDG_RUNTIME_DIR").map(PathBuf::from);
    let below = |directory: &Option<PathBuf>, path: &str| directory.as_ref().map(|directory| directory.join(path));
    let others = [
        below(&runtime, "docker.sock"),                                       // rootless Docker
        below(&runtime, "podman/podman.sock"),                                // rootless Podman
        Some("/run/podman/podman.sock".into()),                               // Podman
        below(&home(), ".local/share/containers/podman/machine/podman.sock"), // Podman on macOS
    ];
    docker_sockets().iter().chain(others.iter().flatten()).map(|socket| unix(socket)).collect()
}

/// The sockets that testcontainers looks for, in its order.
fn docker_sockets() -> Vec<PathBuf> {
    let below = |directory: Option<PathBuf>, path: &str| directory.map(|directory| directory.join(path));
    let sockets = [
        Some("/var/run/docker.sock".into()),
        below(set("XDG_RUNTIME_DIR").map(PathBuf::from), ".docker/run/docker.sock"),
        below(home(), ".docker/run/docker.sock"),
        below(home(), ".docker/desktop/docker.sock"),
    ];
    sockets.into_iter().flatten().collect()
}

fn unix(socket: &Path) -> String {
    format!("unix://{}", socket.display())
}

fn home() -> Option<PathBuf> {
    env::home_dir().filter(|home| !home.as_os_str().is_empty())
}

/// The value of a variable that is set and not empty.
fn set(variable: &str) -> Option<String> {
    env::var(variable).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use std::{env, fs};

    use super::{client, context_address, current_context};

    #[test]
    fn a_context_is_found_by_its_name() {
        let directory = env::temp_dir().join(format!("testbed-{}-contexts", std::process::id()));
        for (hash, name, host) in [("a1", "one", "unix:///one.sock"), ("b2", "rootless", "unix:///two.sock")] {
            let meta = directory.join("contexts/meta").join(hash);
            fs::create_dir_all(&meta).unwrap();
            let text = format!(r#"{{"Name":"{name}","Metadata":{{}},"Endpoints":{{"docker":{{"Host":"{host}"}}}}}}"#);
            fs::write(meta.join("meta.json"), text).unwrap();
        }
        fs::write(directory.join("config.json"), r#"{"auths":{},"currentContext":"rootless"}"#).unwrap();
        assert_eq!(current_context(&directory).as_deref(), Some("rootless"));
        assert_eq!(context_address(&directory, "rootless").as_deref(), Some("unix:///two.sock"));
        assert_eq!(context_address(&directory, "three"), None);
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn an_address_that_leads_nowhere_says_why() {
        for (address, reason) in [
            ("ssh://ana@host", "`ssh://` is not supported here"),
            ("/var/run/docker.sock", "begins with `unix://`"),
            ("unix:///no/such.sock", "No such file"),
        ] {
            let error = client(address).err().unwrap().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
