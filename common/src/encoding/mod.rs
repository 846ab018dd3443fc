//! Field tables (AMQP 0-9-1, section 4.2.5.5): makes, prints and measures them, and limits how deep they are nested.

pub(crate) mod frame_size;
pub(crate) mod headers;
pub(crate) mod nesting;
pub(crate) mod short_string;
pub(crate) mod table;
