//! The parts of `cargo faults` and `cargo soak`: they make real faults, and check that `common` restores everything
//! that it promises to restore.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod access;
pub mod fault;
pub mod kept_setup;
pub mod logs;
pub mod losses;
pub mod matrix;
pub mod numbered_publisher;
pub mod numbers;
pub mod panics;
pub mod reader;
pub mod soak;
pub mod users;
pub mod wait;
