//! The lesson programs and the same programs in Python (`interop/`) understand each other, both ways, in every chapter.
//!
//! Python may be missing. A test of the standard harness could then only pass or fail, and what it prints is shown
//! only when it fails; so this one has a `main` of its own, and says `ignored`.

use std::{
    collections::BTreeMap,
    env, fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use futures_util::future::BoxFuture;
use libtest_mimic::{Arguments, Failed, Trial};
use testbed::{Broker, Program, Running, VirtualHost, build_programs};
use tokio::{process::Command, runtime::Runtime, time::timeout};

/// One of the two ports of the tutorial.
#[derive(Clone, Copy, PartialEq)]
enum Port {
    Rust,
    Python,
}
use Port::{Python, Rust};

type Chapter = for<'a> fn(&'a Ports, &'a VirtualHost<'a>, Port, Port) -> BoxFuture<'a, Result<()>>;

const CHAPTERS: [(&str, Chapter); 6] = [
    ("hello_world", |ports, host, from, to| Box::pin(hello_world(ports, host, from, to))),
    ("work_queues", |ports, host, from, to| Box::pin(work_queues(ports, host, from, to))),
    ("pub_sub", |ports, host, from, to| Box::pin(pub_sub(ports, host, from, to))),
    ("routing", |ports, host, from, to| Box::pin(routing(ports, host, from, to))),
    ("topics", |ports, host, from, to| Box::pin(topics(ports, host, from, to))),
    ("rpc", |ports, host, from, to| Box::pin(rpc(ports, host, from, to))),
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
                let host = Broker::shared().await?.virtual_host().await?;
                chapter(ports, &host, from, to).await
            };
            runtime.block_on(run).map_err(|error| format!("{error:#}").into())
        };
        Trial::test(name, trial).with_ignored_flag(ignored)
    });
    Ok(libtest_mimic::run(&arguments, trials.collect()).exit_code())
}

/// How to run the programs of both.
struct Ports {
    rust: BTreeMap<String, PathBuf>,
    python: PathBuf,
    /// Where `pika` is, unless the Python has it itself.
    packages: Option<PathBuf>,
}

impl Ports {
    /// The inner error says why there is no Python to test with.
    async fn prepare() -> Result<Result<Ports, String>> {
        match find_python().await {
            Ok((python, packages)) => Ok(Ok(Ports { rust: build_programs(|_| ()).await?, python, packages })),
            Err(reason) => Ok(Err(format!("{reason:#}"))),
        }
    }

    /// The program of that name, of one port or the other.
    fn program(&self, port: Port, name: &str, host: &VirtualHost<'_>, arguments: &[&str]) -> Result<Program> {
        let program = match port {
            Rust => Program::new(self.rust.get(name).with_context(|| format!("there is no program {name}"))?),
            Python => {
                let program = Program::new(&self.python).arg(scripts().join(format!("{name}.py")));
                // Without it, output into a pipe waits in a buffer.
                let program = program.env("PYTHONUNBUFFERED", "1");
                match &self.packages {
                    Some(packages) => program.env("PYTHONPATH", packages),
                    None => program,
                }
            }
        };
        Ok(program.url(host.url()).args(arguments))
    }

    /// Starts a program that waits for messages; it is subscribed when this returns.
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

    /// Runs a program that ends by itself and prints these lines.
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

/// A Python that can import `pika`, and where it finds that.
async fn find_python() -> Result<(PathBuf, Option<PathBuf>)> {
    let (python, packages) = match env::var_os("INTEROP_PYTHON") {
        Some(python) => (PathBuf::from(python), None),
        None => {
            let python = PathBuf::from(if cfg!(windows) { "python" } else { "python3" });
            let packages = install_pika(&python).await?;
            (python, Some(packages))
        }
    };
    let mut check = Command::new(&python);
    check.args(["-c", "import pika"]).envs(packages.iter().map(|path| ("PYTHONPATH", path)));
    succeeds(check, Duration::from_secs(30)).await?;
    Ok((python, packages))
}

/// Installs what `requirements.txt` asks for into a directory of cargo's, once.
async fn install_pika(python: &Path) -> Result<PathBuf> {
    let requirements = scripts().join("requirements.txt");
    let mut wanted = DefaultHasher::new();
    fs::read(&requirements).with_context(|| format!("cannot read {}", requirements.display()))?.hash(&mut wanted);
    let packages = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("interop-{:016x}", wanted.finish()));
    if packages.exists() {
        return Ok(packages);
    }
    // Under another name until it is complete.
    let incomplete = packages.with_extension(std::process::id().to_string());
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1", "--target"]);
    pip.arg(&incomplete).arg("--requirement").arg(&requirements);
    if let Err(error) = succeeds(pip, Duration::from_secs(120)).await {
        drop(fs::remove_dir_all(&incomplete));
        return Err(error.context("`pip install` of interop/requirements.txt failed"));
    }
    match fs::rename(&incomplete, &packages) {
        // Somebody else was faster.
        Err(_) if packages.exists() => fs::remove_dir_all(&incomplete)?,
        renamed => renamed?,
    }
    Ok(packages)
}

/// Runs a command; an error with the last line it said if it fails.
async fn succeeds(mut command: Command, patience: Duration) -> Result<()> {
    let name = command.as_std().get_program().display().to_string();
    let run = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(patience, run).await.map_err(|_| anyhow!("{name} takes more than {patience:?}"))?;
    let output = output.with_context(|| format!("cannot run {name}"))?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {}", words.trim().lines().last().unwrap_or_default());
    Ok(())
}

const MESSAGES: &str = " [*] Waiting for messages. To exit press CTRL+C";
const LOGS: &str = " [*] Waiting for logs. To exit press CTRL+C";

async fn hello_world(ports: &Ports, host: &VirtualHost<'_>, from: Port, to: Port) -> Result<()> {
    // Before and after the receiver: each has to accept what the other declares.
    ports.run(from, "send", host, &[], &[" [x] Sent 'Hello World!'"]).await?;
    let mut receiver = ports.start(to, "receive", host, &[], MESSAGES).await?;
    receiver.expect(" [x] Received Hello World!").await?;
    ports.run(from, "send", host, &[], &[" [x] Sent 'Hello World!'"]).await?;
    receiver.expect(" [x] Received Hello World!").await
}

async fn work_queues(ports: &Ports, host: &VirtualHost<'_>, from: Port, to: Port) -> Result<()> {
    ports.run(from, "new_task", host, &[], &[" [x] Sent Hello World!"]).await?;
    let mut worker = ports.start(to, "worker", host, &[], MESSAGES).await?;
    ports.run(from, "new_task", host, &["A", "second", "of", "wörk."], &[" [x] Sent A second of wörk."]).await?;
    for line in [" [x] Received Hello World!", " [x] Done", " [x] Received A second of wörk.", " [x] Done"] {
        worker.expect(line).await?;
    }
    // A worker that dies leaves its task to one of the other kind.
    let mut other = ports.start(from, "worker", host, &[], MESSAGES).await?;
    ports.run(from, "new_task", host, &["long...................."], &[" [x] Sent long...................."]).await?;
    worker.expect(" [x] Received long....................").await?;
    worker.kill()?;
    other.expect(" [x] Received long....................").await
}

async fn pub_sub(ports: &Ports, host: &VirtualHost<'_>, from: Port, to: Port) -> Result<()> {
    let mut receiver = ports.start(to, "receive_logs", host, &[], LOGS).await?;
    let mut other = ports.start(from, "receive_logs", host, &[], LOGS).await?;
    ports.run(from, "emit_log", host, &[], &[" [x] Sent info: Hello World!"]).await?;
    ports.run(from, "emit_log", host, &["grüße", "an alle"], &[" [x] Sent grüße an alle"]).await?;
    for receiver in [&mut receiver, &mut other] {
        receiver.expect(" [x] info: Hello World!").await?;
        receiver.expect(" [x] grüße an alle").await?;
    }
    Ok(())
}

async fn routing(ports: &Ports, host: &VirtualHost<'_>, from: Port, to: Port) -> Result<()> {
    let mut receiver = ports.start(to, "receive_logs_direct", host, &["warning", "info"], LOGS).await?;
    ports.run(from, "emit_log_direct", host, &[], &[" [x] Sent info:Hello World!"]).await?;
    ports.run(from, "emit_log_direct", host, &["error", "no", "match"], &[" [x] Sent error:no match"]).await?;
    ports.run(from, "emit_log_direct", host, &["warning", "a", "match"], &[" [x] Sent warning:a match"]).await?;
    receiver.expect(" [x] info:Hello World!").await?;
    receiver.expect(" [x] warning:a match").await
}

async fn topics(ports: &Ports, host: &VirtualHost<'_>, from: Port, to: Port) -> Result<()> {
    let keys = ["*.orange.*", "lazy.#", "anonymous.info"];
    let mut receiver = ports.start(to, "receive_logs_topic", host, &keys, LOGS).await?;
    ports.run(from, "emit_log_topic", host, &[], &[" [x] Sent anonymous.info:Hello World!"]).await?;
    for key in ["quick.orange.fox", "quick.brown.fox", "lazy.orange.elephant", "lazy"] {
        ports
            .run(from, "emit_log_topic", host, &[key, "an", "animal"], &[&format!(" [x] Sent {key}:an animal")])
            .await?;
    }
    receiver.expect(" [x] anonymous.info:Hello World!").await?;
    for key in ["quick.orange.fox", "lazy.orange.elephant", "lazy"] {
        receiver.expect(&format!(" [x] {key}:an animal")).await?;
    }
    Ok(())
}

async fn rpc(ports: &Ports, host: &VirtualHost<'_>, from: Port, to: Port) -> Result<()> {
    let mut server = ports.start(to, "rpc_server", host, &[], " [x] Awaiting RPC requests").await?;
    ports.run(from, "rpc_client", host, &[], &[" [x] Requesting fib(30)", " [.] Got 832040"]).await?;
    server.expect(" [.] fib(30)").await?;
    if to == Rust {
        // A client that knows nothing of errors gets one as a reply, instead of none.
        let error = " [.] Got fib takes a whole number from 0 to 186";
        ports.run(from, "rpc_client", host, &["abc"], &[" [x] Requesting fib(abc)", error]).await?;
    }
    let answer = " [.] Got 332825110087067562321196029789634457848";
    ports.run(from, "rpc_client", host, &["186"], &[" [x] Requesting fib(186)", answer]).await?;
    server.expect(" [.] fib(186)").await
}
