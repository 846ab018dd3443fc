//! The directories in which private nodes run: of this process, and of others, for `cargo ctl`.

use std::{
    env, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::unistd::geteuid;

/// The file in which a node's directory says at which port the node speaks AMQP.
pub(super) const PORT_FILE: &str = "port";

/// The directory of a node that runs, of this process or of another one of this user's.
pub(super) struct NodeDirectory {
    path: PathBuf,
    pub(super) port: u16,
}

impl NodeDirectory {
    pub(super) fn rabbitmqctl(&self) -> PathBuf {
        self.path.join("rabbitmqctl")
    }
}

/// Where nodes of this user run. A directory of another user's is not looked at: what is in it gets executed.
pub(super) fn directories() -> Vec<NodeDirectory> {
    let entries = fs::read_dir(env::temp_dir()).into_iter().flatten().flatten();
    let is_ours = |path: &Path| {
        let metadata = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_dir);
        metadata.is_some_and(|it| it.uid() == geteuid().as_raw() && it.mode() & 0o077 == 0)
    };
    let nodes = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("testbed-"));
    let nodes = nodes.map(|entry| entry.path()).filter(|path| is_ours(path));
    nodes
        .filter_map(|path| {
            let port = fs::read_to_string(path.join(PORT_FILE)).ok()?.parse().ok()?;
            Some(NodeDirectory { path, port })
        })
        .collect()
}
