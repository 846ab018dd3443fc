//! The exclusive queues that RabbitMQ has named for a consumer's setup. Otherwise they would remain, bound and filling
//! up, until the connection ends, and no other program can know their names.

use std::sync::Arc;

use amqprs::channel::QueueDeleteArguments;

use crate::{
    connection::live::ConnectionState,
    session::{Session, setup_channel::SetupChannel},
};

/// Their names, and the connection that they belong to.
pub(crate) type OwnQueues = (Arc<ConnectionState>, Vec<String>);

/// Remembers their names from now on.
pub(crate) fn record(session: &Session) {
    *session.own_queues() = Some(Vec::new());
}

/// Forgets them.
pub(crate) fn take(session: &Session) -> OwnQueues {
    (session.connection.clone(), session.own_queues().take().unwrap_or_default())
}

/// Deletes them on this session, if their connection still lives. Otherwise RabbitMQ has deleted them already.
pub(crate) async fn delete(session: &Arc<Session>, (connection, queues): OwnQueues) {
    if Arc::ptr_eq(&connection, &session.connection) {
        for queue in queues {
            // Deleting a queue that does not exist is not an error. Any other error will also hit the setup.
            let _ = SetupChannel::new(session.clone()).queue_delete(QueueDeleteArguments::new(&queue)).await;
        }
    }
}
