//! What can go wrong between a program and its broker.

use std::fmt;

use clap::ValueEnum;

/// One kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub enum Fault {
    /// The connection ends in order: both sides see the end of the stream
    Fin,
    /// The connection is reset
    Rst,
    /// Nothing passes any more, and only the heartbeat tells
    Silence,
    /// The connection ends after so many bytes, most likely within a frame
    MidFrame,
    /// The broker is stopped in good order, and started again
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
    /// It hits the broker, and with it everybody.
    pub fn is_of_the_broker(self) -> bool {
        matches!(self, Self::StopStart | Self::Kill)
    }

    /// It ends the connection, and not only something on it.
    pub fn ends_the_connection(self) -> bool {
        !matches!(self, Self::ChannelClosed | Self::QueueDeleted)
    }

    /// It lasts until somebody lifts it: no connection can be made before.
    pub fn lasts(self) -> bool {
        self.is_of_the_broker() || self == Self::Silence
    }
}

/// As on the command line.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.to_possible_value().as_ref().map_or("", |value| value.get_name()))
    }
}
