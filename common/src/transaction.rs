//! AMQP transactions: several messages, all or none.

use std::{future::Future, sync::Arc};

use amqprs::{BasicProperties, channel::BasicPublishArguments};

use crate::{Channel, Error, Result, headers::rebuild, opening::Opening, topology::check_name};

/// The messages of one transaction, given to the function that [`Channel::transaction`] runs.
pub struct Transaction {
    opening: Arc<Opening>,
}

impl Transaction {
    /// Adds a message. Nobody sees it before the commit.
    ///
    /// # Errors
    /// [`Lost`](Error::Lost), [`Invalid`](Error::Invalid).
    pub async fn publish(
        &self,
        arguments: BasicPublishArguments,
        mut properties: BasicProperties,
        body: impl Into<Vec<u8>>,
    ) -> Result<()> {
        check_name("exchange name", &arguments.exchange)?;
        check_name("routing key", &arguments.routing_key)?;
        if arguments.immediate || arguments.mandatory {
            // AMQP leaves open what either does in a transaction.
            return Err(Error::Invalid("neither `immediate` nor `mandatory` is possible in a transaction".into()));
        }
        rebuild(&mut properties)?;
        // Nothing may follow the close of a channel.
        let _turn = self.opening.turn().await;
        if let Some(reason) = self.opening.ledger.loss.reason() {
            return Err(reason);
        }
        match self.opening.raw()?.basic_publish(properties, body.into(), arguments).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.opening.failed(error).await),
        }
    }
}

impl Channel {
    /// Runs `work` in a transaction (AMQP 0-9-1, class `tx`): commits when it returns `Ok`, rolls back when it returns an
    /// error or is dropped. On an AMQP channel of its own, since RabbitMQ does not mix transactions with confirms.
    ///
    /// It is atomic for the messages of one queue only, and slow: prefer [`publish`](Self::publish), whose confirm says as
    /// much ([RabbitMQ on transactions](https://www.rabbitmq.com/docs/semantics#tx)).
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
        let opening = self.extra_opening().await?;
        opening.call(|| "cannot begin a transaction".into(), |raw| async move { raw.tx_select().await }).await?;
        let outcome = match work(Transaction { opening: opening.clone() }).await {
            Ok(value) => {
                let commit = |raw: amqprs::channel::Channel| async move { raw.tx_commit().await };
                match opening.call(|| "cannot commit the transaction".into(), commit).await {
                    Ok(()) => Ok(value),
                    Err(error @ (Error::Lost { .. } | Error::Timeout { .. })) => {
                        Err(Error::Unconfirmed { reason: error.to_string() })
                    }
                    // One of its messages was refused.
                    Err(Error::Stale) => Err(opening.ledger.loss.reason().unwrap_or(Error::Stale)),
                    Err(error) => Err(error),
                }
            }
            // Closing the channel rolls back.
            Err(error) => Err(error),
        };
        opening.close().await;
        outcome
    }
}
