//! Running handlers on deliveries, and settling each by what its handler returns.

pub(crate) mod acks;
pub(crate) mod concurrent;
pub(crate) mod handler;
pub mod tasks;
