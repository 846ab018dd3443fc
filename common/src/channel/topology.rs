//! Queues, exchanges and bindings that are declared once, on the channel's current session.

use amqprs::channel::{
    ExchangeBindArguments, ExchangeDeclareArguments, ExchangeDeleteArguments, ExchangeUnbindArguments,
    QueueBindArguments, QueueDeleteArguments, QueuePurgeArguments, QueueUnbindArguments,
};

use crate::{
    Channel, QueueDeclaration, Result,
    session::setup_channel::{QueueDeclared, SetupChannel},
};

/// Each of these methods runs once, now. Declare in a [`setup`](Channel::setup) what must exist again after every loss.
///
/// ```no_run
/// use common::{
///     amqprs::channel::{ExchangeDeleteArguments, QueueDeleteArguments, QueuePurgeArguments, QueueUnbindArguments},
///     quorum_queue,
/// };
///
/// # async fn example(channel: common::Channel) -> common::Result<()> {
/// let old = channel.queue_declare(quorum_queue("orders")).await?;
/// println!("{} messages are purged", channel.queue_purge(QueuePurgeArguments::new(&old.name)).await?);
/// channel.queue_unbind(QueueUnbindArguments::new("orders", "shop", "order.#")).await?;
/// channel.queue_delete(QueueDeleteArguments::new("orders").if_empty(true).finish()).await?;
/// channel.exchange_delete(ExchangeDeleteArguments::new("shop").if_unused(true).finish()).await
/// # }
/// ```
impl Channel {
    /// Declares a queue, as [`SetupChannel::queue_declare`] does.
    ///
    /// # Errors
    /// Those of [`SetupChannel::queue_declare`].
    pub async fn queue_declare(&self, queue: impl Into<QueueDeclaration>) -> Result<QueueDeclared> {
        self.once(queue.into(), |channel, queue| async move { channel.queue_declare(queue).await }).await
    }

    /// Binds a queue to an exchange.
    ///
    /// # Errors
    /// Those of [`SetupChannel::queue_bind`].
    pub async fn queue_bind(&self, arguments: QueueBindArguments) -> Result<()> {
        self.once(arguments, |channel, arguments| async move { channel.queue_bind(arguments).await }).await
    }

    /// Removes the binding that [`queue_bind`](Self::queue_bind) made with the same arguments.
    ///
    /// # Errors
    /// Those of [`SetupChannel::queue_unbind`].
    pub async fn queue_unbind(&self, arguments: QueueUnbindArguments) -> Result<()> {
        self.once(arguments, |channel, arguments| async move { channel.queue_unbind(arguments).await }).await
    }

    /// Deletes all messages of a queue, and returns how many there were.
    ///
    /// # Errors
    /// Those of [`SetupChannel::queue_purge`].
    pub async fn queue_purge(&self, arguments: QueuePurgeArguments) -> Result<u32> {
        self.once(arguments, |channel, arguments| async move { channel.queue_purge(arguments).await }).await
    }

    /// Deletes a queue, and returns how many messages it had.
    ///
    /// # Errors
    /// Those of [`SetupChannel::queue_delete`].
    pub async fn queue_delete(&self, arguments: QueueDeleteArguments) -> Result<u32> {
        self.once(arguments, |channel, arguments| async move { channel.queue_delete(arguments).await }).await
    }

    /// Declares an exchange.
    ///
    /// # Errors
    /// Those of [`SetupChannel::exchange_declare`].
    pub async fn exchange_declare(&self, arguments: ExchangeDeclareArguments) -> Result<()> {
        self.once(arguments, |channel, arguments| async move { channel.exchange_declare(arguments).await }).await
    }

    /// Deletes an exchange.
    ///
    /// # Errors
    /// Those of [`SetupChannel::exchange_delete`].
    pub async fn exchange_delete(&self, arguments: ExchangeDeleteArguments) -> Result<()> {
        self.once(arguments, |channel, arguments| async move { channel.exchange_delete(arguments).await }).await
    }

    /// Binds an exchange to another one, from which it then gets messages.
    ///
    /// # Errors
    /// Those of [`SetupChannel::exchange_bind`].
    pub async fn exchange_bind(&self, arguments: ExchangeBindArguments) -> Result<()> {
        self.once(arguments, |channel, arguments| async move { channel.exchange_bind(arguments).await }).await
    }

    /// Removes the binding that [`exchange_bind`](Self::exchange_bind) made with the same arguments.
    ///
    /// ```no_run
    /// use common::amqprs::channel::{ExchangeBindArguments, ExchangeUnbindArguments};
    ///
    /// # async fn example(channel: common::Channel) -> common::Result<()> {
    /// // Destination, source, binding key:
    /// channel.exchange_bind(ExchangeBindArguments::new("audit", "logs", "error")).await?;
    /// channel.exchange_unbind(ExchangeUnbindArguments::new("audit", "logs", "error")).await
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`SetupChannel::exchange_unbind`].
    pub async fn exchange_unbind(&self, arguments: ExchangeUnbindArguments) -> Result<()> {
        self.once(arguments, |channel, arguments| async move { channel.exchange_unbind(arguments).await }).await
    }

    /// Runs on the current session. If it ended before, runs on the next one.
    async fn once<A, T, Fut>(&self, arguments: A, call: impl Fn(SetupChannel, A) -> Fut) -> Result<T>
    where
        A: Clone,
        Fut: Future<Output = Result<T>>,
    {
        self.on_session(|session| call(SetupChannel::new(session), arguments.clone())).await
    }
}
