//! Finds the directories in which private nodes run, those of other processes, too: for `cargo ctl`.

use std::{
    env, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::unistd::geteuid;

/// The file in a node's directory that contains the node's AMQP port.
pub(super) const PORT_FILE: &str = "port";

/// The directory of a running node. This process or another process of the same user has started it.
pub(super) struct NodeDirectory {
    path: PathBuf,
    pub(super) port: u16,
}

impl NodeDirectory {
    pub(super) fn rabbitmqctl(&self) -> PathBuf {
        self.path.join("rabbitmqctl")
    }
}

/// The directories of this user's nodes. Directories of other users are ignored, because we execute a script in them.
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
