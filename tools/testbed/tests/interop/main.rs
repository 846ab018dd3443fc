//! The lesson programs work together with the same programs in Python (`tools/interop/`), in both directions, in every
//! chapter. So do the examples that use aio-pika's patterns.
//!
//! Python may be missing. With the standard harness a test can only pass or fail, and its output is shown only if it
//! fails. So this test has a `main` of its own, and reports its tests as `ignored`.

mod chapters;
mod json;
mod python;

use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, Result, anyhow, ensure};
use futures_util::future::BoxFuture;
use libtest_mimic::{Arguments, Failed, Trial};
use testbed::{Broker, Program, Running, VirtualHost, build_examples, build_programs};
use tokio::{runtime::Runtime, sync::OnceCell};

/// One of the two languages.
#[derive(Clone, Copy, PartialEq)]
enum Port {
    Rust,
    Python,
}
use Port::{Python, Rust};

type Chapter = for<'a> fn(&'a Ports, &'a VirtualHost<'a>, Port, Port) -> BoxFuture<'a, Result<()>>;

const CHAPTERS: [(&str, Chapter); 8] = [
    ("hello_world", |ports, host, from, to| Box::pin(chapters::hello_world(ports, host, from, to))),
    ("work_queues", |ports, host, from, to| Box::pin(chapters::work_queues(ports, host, from, to))),
    ("pub_sub", |ports, host, from, to| Box::pin(chapters::pub_sub(ports, host, from, to))),
    ("routing", |ports, host, from, to| Box::pin(chapters::routing(ports, host, from, to))),
    ("topics", |ports, host, from, to| Box::pin(chapters::topics(ports, host, from, to))),
    ("rpc", |ports, host, from, to| Box::pin(chapters::rpc(ports, host, from, to))),
    ("json_rpc", |ports, host, from, to| Box::pin(json::rpc(ports, host, from, to))),
    ("json_tasks", |ports, host, from, to| Box::pin(json::tasks(ports, host, from, to))),
];

fn main() -> Result<ExitCode> {
    let arguments = Arguments::from_args();
    let names = CHAPTERS.map(|(name, chapter)| {
        [
            (format!("{name}_from_python_to_rust"), chapter, Python, Rust),
            (format!("{name}_from_rust_to_python"), chapter, Rust, Python),
        ]
    });
    let wanted = |name: &str| arguments.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()));
    let any_wanted = !arguments.list && names.iter().flatten().any(|(name, ..)| wanted(name));

    let runtime = Arc::new(Runtime::new()?);
    let ports = match any_wanted {
        true => runtime.block_on(Ports::prepare())?,
        false => Err("nothing is to be run".to_owned()),
    };
    let must_run = env::var("CI").is_ok_and(|ci| ci == "true") || env::var_os("INTEROP_PYTHON").is_some();
    let ignored = ports.is_err() && !must_run;
    if let (true, true, Err(reason)) = (any_wanted, ignored, &ports) {
        eprintln!("\nThe tests with Python are IGNORED: {reason}\n");
    }
    let ports = Arc::new(ports);
    let trials = names.into_iter().flatten().map(|(name, chapter, from, to)| {
        let (runtime, ports) = (runtime.clone(), ports.clone());
        let trial = move || -> Result<(), Failed> {
            let ports = ports.as_ref().as_ref()?;
            let run = async {
                let host = broker().await?.virtual_host().await?;
                chapter(ports, &host, from, to).await
            };
            runtime.block_on(run).map_err(|error| format!("{error:#}").into())
        };
        Trial::test(name, trial).with_ignored_flag(ignored)
    });
    Ok(libtest_mimic::run(&arguments, trials.collect()).exit_code())
}

/// One broker for all tests. It is as strict as RabbitMQ can be: it refuses queues that are neither durable nor
/// exclusive. RabbitMQ 3 does not have this setting.
async fn broker() -> Result<&'static Broker> {
    static STRICT: OnceCell<Result<Broker, String>> = OnceCell::const_new();
    let shared = Broker::shared().await?;
    if shared.version().await?.starts_with("3.") {
        return Ok(shared);
    }
    let deny = "deprecated_features.permit.transient_nonexcl_queues = false";
    let start = async || Broker::builder().configuration(deny).start().await.map_err(|error| format!("{error:#}"));
    STRICT.get_or_init(start).await.as_ref().map_err(|error| anyhow!("{error}"))
}

/// How to run the programs in both languages.
struct Ports {
    rust: BTreeMap<String, PathBuf>,
    python: PathBuf,
    /// The directory of the packages, unless the Python has them itself.
    packages: Option<PathBuf>,
}

impl Ports {
    /// The inner error says why there is no Python to test with.
    async fn prepare() -> Result<Result<Ports, String>> {
        match python::find().await {
            Ok((python, packages)) => {
                let mut rust = build_programs(|_| ()).await?;
                rust.extend(build_examples().await?);
                Ok(Ok(Ports { rust, python, packages }))
            }
            Err(reason) => Ok(Err(format!("{reason:#}"))),
        }
    }

    /// The program with this name, in one of the languages.
    fn program(&self, port: Port, name: &str, host: &VirtualHost<'_>, arguments: &[&str]) -> Result<Program> {
        let program = match port {
            Rust => Program::new(self.rust.get(name).with_context(|| format!("there is no program {name}"))?),
            Python => {
                let program = Program::new(&self.python).arg(scripts().join(format!("{name}.py")));
                // Without this, output into a pipe stays in a buffer.
                let program = program.env("PYTHONUNBUFFERED", "1");
                match &self.packages {
                    Some(packages) => program.env("PYTHONPATH", packages),
                    None => program,
                }
            }
        };
        Ok(program.url(host.url()).args(arguments))
    }

    /// Starts a program that waits for messages. When this returns, it has subscribed.
    async fn start(
        &self,
        port: Port,
        name: &str,
        host: &VirtualHost<'_>,
        arguments: &[&str],
        first_line: &str,
    ) -> Result<Running> {
        let mut running = self.program(port, name, host, arguments)?.spawn()?;
        running.expect(first_line).await?;
        Ok(running)
    }

    /// Runs a program until it ends without Ctrl-C. It must print these lines.
    async fn run(
        &self,
        port: Port,
        name: &str,
        host: &VirtualHost<'_>,
        arguments: &[&str],
        lines: &[&str],
    ) -> Result<()> {
        let end = self.program(port, name, host, arguments)?.run().await?;
        let printed: Vec<_> = end.stdout.lines().collect();
        ensure!(end.code == Some(0) && printed == lines, "{name} {arguments:?} should print {lines:?}: {end:?}");
        Ok(())
    }
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../interop")
}
