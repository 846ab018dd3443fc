//! The faults that can happen between a program and its broker.

use std::fmt;

use clap::ValueEnum;

/// One kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub enum Fault {
    /// The connection is closed cleanly: both sides see the end of the stream
    Fin,
    /// The connection is reset
    Rst,
    /// Nothing passes any more, and only missing heartbeats show it
    Silence,
    /// The connection ends after a number of bytes, most likely within a frame
    MidFrame,
    /// The broker is stopped cleanly, and started again
    StopStart,
    /// The broker is killed, and started again
    Kill,
    /// The broker is told to close all connections of the user
    CloseConnections,
    /// The broker closes the AMQP channel, because of an error
    ChannelClosed,
    /// The queue is deleted
    QueueDeleted,
}

impl Fault {
    /// Whether it hits the broker, and so all users.
    pub fn is_of_the_broker(self) -> bool {
        matches!(self, Self::StopStart | Self::Kill)
    }

    /// Whether it ends the connection, and not only a channel or a queue.
    pub fn ends_the_connection(self) -> bool {
        !matches!(self, Self::ChannelClosed | Self::QueueDeleted)
    }

    /// Whether it lasts until it is ended, so that until then no connection is possible.
    pub fn lasts(self) -> bool {
        self.is_of_the_broker() || self == Self::Silence
    }
}

/// The name as on the command line.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.to_possible_value().as_ref().map_or("", |value| value.get_name()))
    }
}
