//! Creates and starts a container.

use std::{collections::HashMap, future::ready, path::Path, pin::pin, time::Duration};

use anyhow::{Result, anyhow};
use futures_util::{StreamExt, TryStreamExt};
use testcontainers::{
    GenericImage, ImageExt,
    bollard::{
        body_full,
        models::{ContainerCreateBody, HostConfig, PortBinding},
        query_parameters as query,
    },
    core::{IntoContainerPort, WaitFor},
    runners::AsyncRunner,
};
use tokio::time::timeout;

use super::{Ports, ServerTls, daemon::Daemon, start::Settings};

pub(super) const AMQP: u16 = 5672;
pub(super) const AMQPS: u16 = 5671;
const MANAGEMENT: u16 = 15672;

/// How long the broker may take from the start of its container until it is ready.
const STARTUP: Duration = Duration::from_secs(60);

/// What RabbitMQ logs when all of it has started.
const STARTED: &str = "Server startup complete";

/// What a container is created from.
pub(super) struct Container<'a> {
    pub(super) image: &'a str,
    pub(super) name: &'a str,
    pub(super) ports: Ports,
    pub(super) settings: &'a Settings,
}

impl Container<'_> {
    /// Starts it with testcontainers if testcontainers uses our daemon. testcontainers finds its daemon by the environment
    /// only, which a running process must not change. For another daemon this does the same with testcontainers' client.
    pub(super) async fn start(&self, daemon: &Daemon) -> Result<()> {
        if daemon.is_that_of_testcontainers() {
            self.start_with_testcontainers(daemon).await
        } else {
            self.start_with_client(daemon).await
        }
    }

    async fn start_with_testcontainers(&self, daemon: &Daemon) -> Result<()> {
        let (repository, tag) = repository_and_tag(self.image);
        let host_ip = host_ip(daemon);
        let mut container = GenericImage::new(repository, tag)
            .with_wait_for(WaitFor::message_on_either_std(STARTED))
            .with_container_name(self.name)
            .with_startup_timeout(STARTUP)
            .with_host_config_modifier(move |config| {
                let bindings = config.port_bindings.iter_mut().flat_map(|map| map.values_mut());
                for PortBinding { host_ip: address, .. } in bindings.flatten().flatten() {
                    address.clone_from(&host_ip);
                }
            });
        for (inside, outside) in self.published() {
            container = container.with_mapped_port(outside, inside.tcp());
        }
        for (path, text) in self.files() {
            container = container.with_copy_to(path, text.into_bytes());
        }
        let container = container.start().await.map_err(|error| anyhow!("{error}"))?;
        // Its destructor needs a runtime. We remove the container ourselves.
        std::mem::forget(container);
        Ok(())
    }

    async fn start_with_client(&self, daemon: &Daemon) -> Result<()> {
        let docker = &daemon.docker;
        if docker.inspect_image(self.image).await.is_err() {
            let (repository, tag) = repository_and_tag(self.image);
            let options = query::CreateImageOptionsBuilder::new().from_image(repository).tag(tag).build();
            let fetching = docker.create_image(Some(options), None, None).try_for_each(|_| async { Ok(()) });
            fetching.await.map_err(|error| anyhow!("{NOT_FETCHED}, error: {error}"))?;
        }
        let bind = |(inside, outside): (u16, u16)| {
            let binding = PortBinding { host_ip: host_ip(daemon), host_port: Some(outside.to_string()) };
            (format!("{inside}/tcp"), Some(vec![binding]))
        };
        let container = ContainerCreateBody {
            image: Some(self.image.to_owned()),
            host_config: Some(HostConfig {
                port_bindings: Some(self.published().into_iter().map(bind).collect::<HashMap<_, _>>()),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        };
        let options = query::CreateContainerOptionsBuilder::new().name(self.name).build();
        docker.create_container(Some(options), container).await?;
        let files = self.files();
        if !files.is_empty() {
            let options = query::UploadToContainerOptionsBuilder::new().path("/").build();
            docker.upload_to_container(self.name, Some(options), body_full(archive(files).await?.into())).await?;
        }
        docker.start_container(self.name, None).await?;
        // Before this line its ports may be open while the broker does not yet answer. If the log ends, or is silent for too
        // long, the later check whether the broker is ready gives the reason.
        let options = query::LogsOptionsBuilder::new().stdout(true).stderr(true).follow(true).build();
        let log = docker.logs(self.name, Some(options));
        let mut started = pin!(log.try_skip_while(|line| ready(Ok(!line.to_string().contains(STARTED)))));
        drop(timeout(STARTUP, started.next()).await);
        Ok(())
    }

    /// The ports in the container, and the published ports for them.
    fn published(&self) -> Vec<(u16, u16)> {
        let mut ports = vec![(AMQP, self.ports.amqp), (MANAGEMENT, self.ports.management)];
        ports.extend(self.ports.tls.map(|port| (AMQPS, port)));
        ports
    }

    /// Files that are copied into the container before it starts.
    fn files(&self) -> Vec<(String, String)> {
        let mut files = Vec::new();
        let mut file = |path: &str, text: &str| files.push((format!("/etc/rabbitmq/{path}"), text.to_owned()));
        if !self.settings.configuration.is_empty() {
            file("conf.d/95-settings.conf", &self.settings.configuration);
        }
        if let (Some(_), Some(tls)) = (self.ports.tls, &self.settings.tls) {
            file("enabled_plugins", ServerTls::PLUGINS);
            file("conf.d/90-tls.conf", &tls.configuration(&AMQPS.to_string(), "/etc/rabbitmq"));
            for (name, text) in tls.files() {
                file(name, text);
            }
        }
        files
    }
}

/// Only programs of this machine may reach a broker that accepts `guest`. There are two exceptions: the daemon is on
/// another machine, or this program runs in a container.
fn host_ip(daemon: &Daemon) -> Option<String> {
    let from_elsewhere = daemon.remote_host().is_some() || in_a_container();
    (!from_elsewhere).then(|| "127.0.0.1".to_owned())
}

/// Whether this program runs in a container of Docker's or Podman's.
pub(super) fn in_a_container() -> bool {
    ["/.dockerenv", "/run/.containerenv"].iter().any(|file| Path::new(file).exists())
}

/// In `registry:5000/rabbitmq` the colon does not begin a tag.
fn repository_and_tag(image: &str) -> (&str, &str) {
    match image.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (image, "latest"),
    }
}

/// Files in the form in which Docker copies them into a container.
async fn archive(files: Vec<(String, String)>) -> Result<Vec<u8>> {
    let mut archive = tokio_tar::Builder::new(Vec::new());
    for (path, text) in files {
        let mut header = tokio_tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, path.trim_start_matches('/'), text.as_bytes()).await?;
    }
    Ok(archive.into_inner().await?)
}

/// How an error begins if an image cannot be fetched.
pub(super) const NOT_FETCHED: &str = "failed to pull the image";
