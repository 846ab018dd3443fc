//! One TCP connection to RabbitMQ: how it is made, watched, lost and made again.

pub(crate) mod backoff;
pub(crate) mod channel_numbers;
pub(crate) mod connect;
pub(crate) mod core;
pub(crate) mod count;
pub(crate) mod events;
pub(crate) mod handle;
pub(crate) mod live;
pub(crate) mod login_failure;
pub(crate) mod loss;
pub(crate) mod peer;
pub(crate) mod supervisor;
