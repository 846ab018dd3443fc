//! AMQP transactions: either all messages arrive or none.

use std::{future::Future, sync::Arc};

use amqprs::{BasicProperties, channel::BasicPublishArguments};

use crate::{
    Channel, Error, Result,
    channel::publish::check,
    deadline::reads_nothing,
    encoding::headers::rebuild,
    session::{
        Session,
        publish::{NotSent, Outgoing},
    },
};

/// The messages of one transaction, given to the function that [`Channel::transaction`] runs.
pub struct Transaction {
    session: Arc<Session>,
    virtual_host: String,
}

impl Transaction {
    /// Adds a message. It becomes visible with the commit.
    ///
    /// # Errors
    /// [`Lost`](Error::Lost), [`Closed`](Error::Closed) when the broker refused an earlier one, [`Invalid`](Error::Invalid),
    /// [`Timeout`](Error::Timeout) when the broker reads nothing for the operation timeout.
    pub async fn publish(
        &self,
        arguments: BasicPublishArguments,
        mut properties: BasicProperties,
        body: impl Into<Vec<u8>>,
    ) -> Result<()> {
        check(&arguments, &properties, &self.virtual_host)?;
        if arguments.mandatory {
            // AMQP does not define `mandatory` in a transaction.
            return Err(Error::Invalid("`mandatory` is not possible in a transaction".into()));
        }
        rebuild(&mut properties)?;
        let session = &self.session;
        match session.publish(session.deadline(), Outgoing::new(arguments, properties, body)).await {
            Ok(()) => Ok(()),
            Err(NotSent::Ended(_)) => Err(session.lost().await),
            Err(NotSent::Late) => Err(reads_nothing("cannot publish in the transaction".into(), session.timeout)),
            Err(NotSent::Failed(error)) => Err(error),
        }
    }
}

impl Channel {
    /// Runs `work` in a transaction (AMQP 0-9-1, class `tx`). Commits if it returns `Ok`; rolls back if it returns an
    /// error or is dropped. It uses a separate AMQP channel, because RabbitMQ does not combine transactions with
    /// confirms.
    ///
    /// It is atomic only for the messages of one queue, and it is slow. Use [`publish`](Self::publish) instead, whose
    /// confirm is as safe ([RabbitMQ on transactions](https://www.rabbitmq.com/docs/semantics#tx)).
    ///
    /// ```no_run
    /// # use amqprs::{BasicProperties, channel::BasicPublishArguments};
    /// # async fn example(channel: common::Channel) -> common::Result<()> {
    /// channel
    ///     .transaction(|transaction| async move {
    ///         for account in ["debit", "credit"] {
    ///             let to = BasicPublishArguments::new("", account);
    ///             transaction.publish(to, BasicProperties::default(), "100").await?;
    ///         }
    ///         Ok(())
    ///     })
    ///     .await
    /// # }
    /// ```
    ///
    /// # Errors
    /// What `work` returns; [`Unconfirmed`](Error::Unconfirmed) when the connection was lost during the commit;
    /// [`Closed`](Error::Closed) when the broker refused a message.
    pub async fn transaction<T, F, Fut>(&self, work: F) -> Result<T>
    where
        F: FnOnce(Transaction) -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        let session = self.extra_session().await?;
        session.call(|| "cannot begin a transaction".into(), |raw| async move { raw.tx_select().await }).await?;
        let virtual_host = self.core.connection.options.virtual_host.clone();
        let outcome = match work(Transaction { session: session.clone(), virtual_host }).await {
            Ok(value) => {
                let commit = |raw: amqprs::channel::Channel| async move { raw.tx_commit().await };
                match session.call(|| "cannot commit the transaction".into(), commit).await {
                    Ok(()) => Ok(value),
                    Err(error @ (Error::Lost { .. } | Error::Timeout { .. })) => {
                        Err(Error::Unconfirmed { reason: error.to_string() })
                    }
                    // One of its messages was refused.
                    Err(Error::Stale) => Err(session.state.closed.reason().unwrap_or(Error::Stale)),
                    Err(error) => Err(error),
                }
            }
            // Closing the channel rolls the transaction back.
            Err(error) => Err(error),
        };
        session.close().await;
        outcome
    }
}
