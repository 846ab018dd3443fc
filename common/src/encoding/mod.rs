//! Field tables (AMQP 0-9-1, section 4.2.5.5): made, shown, measured, and kept from nesting too deeply.

pub(crate) mod frame_size;
pub(crate) mod headers;
pub(crate) mod nesting;
pub(crate) mod short_string;
pub(crate) mod table;
