//! Queues, exchanges and bindings: the same calls on a [`Setup`](crate::Setup), where they run again after every
//! loss, and on a [`Channel`](crate::Channel), where they run once.

use amqprs::channel::{
    BasicQosArguments, ExchangeBindArguments, ExchangeDeclareArguments, ExchangeDeleteArguments,
    ExchangeUnbindArguments, QueueBindArguments, QueueDeclareArguments, QueueDeleteArguments, QueuePurgeArguments,
    QueueUnbindArguments,
};
use amqprs::{FieldTable, FieldValue};
use std::sync::{Arc, PoisonError};

use crate::{Error, Result, opening::Opening};

/// What the broker says of a queue it declared ([`queue.declare-ok`](https://www.rabbitmq.com/amqp-0-9-1-reference#queue.declare)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueDeclared {
    /// The queue's name: as asked for, or the one the broker made up.
    pub name: String,
    /// Messages ready for delivery.
    pub messages: u32,
    /// Consumers at this moment.
    pub consumers: u32,
}

/// The declaration of a durable quorum queue, the type RabbitMQ recommends for messages that must not be lost:
/// replicated in a cluster, and it notices a message that keeps coming back
/// ([quorum queues](https://www.rabbitmq.com/docs/quorum-queues)).
///
/// It is what the chapters declare, in every language's port, so that their programs work with each other.
///
/// ```
/// let arguments = common::quorum_queue("task_queue");
/// ```
pub fn quorum_queue(name: &str) -> QueueDeclareArguments {
    let arguments = text_table(&[("x-queue-type", "quorum")]);
    QueueDeclareArguments::durable_client_named(name).arguments(arguments).finish()
}

/// A table of texts. Their names are ours, and short enough.
pub(crate) fn text_table(entries: &[(&str, &str)]) -> FieldTable {
    let mut table = FieldTable::new();
    for (name, value) in entries {
        if let Ok(name) = (*name).try_into() {
            table.insert(name, FieldValue::from(*value));
        }
    }
    table
}

/// Gives a type with `on_opening`, which runs a call on its opening, the topology calls.
macro_rules! topology_calls {
    ($type:ty) => {
        impl $type {
            /// Declares a queue: creates it, or checks that it exists with these arguments
            /// ([queues](https://www.rabbitmq.com/docs/queues)). With an empty name the broker makes one up.
            ///
            /// # Errors
            /// [`Closed`](crate::Error::Closed) with 406 when it exists with other arguments, with 404 when it is
            /// passive and missing, with 405 when it is exclusive to another connection.
            pub async fn queue_declare(
                &self,
                arguments: amqprs::channel::QueueDeclareArguments,
            ) -> crate::Result<crate::QueueDeclared> {
                self.on_opening(|opening| crate::topology::queue_declare(opening, arguments.clone())).await
            }

            /// Binds a queue to an exchange: messages whose routing key fits the binding key come to the queue.
            ///
            /// # Errors
            /// [`Closed`](crate::Error::Closed) with 404 when either is missing.
            pub async fn queue_bind(&self, arguments: amqprs::channel::QueueBindArguments) -> crate::Result<()> {
                self.on_opening(|opening| crate::topology::queue_bind(opening, arguments.clone())).await
            }

            /// Undoes a [`queue_bind`](Self::queue_bind) with the same arguments.
            ///
            /// # Errors
            /// [`Closed`](crate::Error::Closed) when the broker refuses.
            pub async fn queue_unbind(&self, arguments: amqprs::channel::QueueUnbindArguments) -> crate::Result<()> {
                self.on_opening(|opening| crate::topology::queue_unbind(opening, arguments.clone())).await
            }

            /// Empties a queue, and tells how many messages were thrown away.
            ///
            /// # Errors
            /// [`Closed`](crate::Error::Closed) with 404 when it is missing.
            pub async fn queue_purge(&self, arguments: amqprs::channel::QueuePurgeArguments) -> crate::Result<u32> {
                self.on_opening(|opening| crate::topology::queue_purge(opening, arguments.clone())).await
            }

            /// Deletes a queue (if unused, if empty, when asked so), and tells how many messages went with it.
            ///
            /// # Errors
            /// [`Closed`](crate::Error::Closed) with 406 when it is in use or not empty.
            pub async fn queue_delete(&self, arguments: amqprs::channel::QueueDeleteArguments) -> crate::Result<u32> {
                self.on_opening(|opening| crate::topology::queue_delete(opening, arguments.clone())).await
            }

            /// Declares an exchange: creates it, or checks that it exists with these arguments
            /// ([exchanges](https://www.rabbitmq.com/docs/exchanges)).
            ///
            /// # Errors
            /// [`Closed`](crate::Error::Closed) with 406 when it exists with other arguments.
            pub async fn exchange_declare(
                &self,
                arguments: amqprs::channel::ExchangeDeclareArguments,
            ) -> crate::Result<()> {
                self.on_opening(|opening| crate::topology::exchange_declare(opening, arguments.clone())).await
            }

            /// Deletes an exchange (if unused, when asked so).
            ///
            /// # Errors
            /// [`Closed`](crate::Error::Closed) with 406 when it is in use.
            pub async fn exchange_delete(
                &self,
                arguments: amqprs::channel::ExchangeDeleteArguments,
            ) -> crate::Result<()> {
                self.on_opening(|opening| crate::topology::exchange_delete(opening, arguments.clone())).await
            }

            /// Binds an exchange to another one, from which it then receives
            /// ([exchange to exchange bindings](https://www.rabbitmq.com/docs/e2e)).
            ///
            /// # Errors
            /// [`Closed`](crate::Error::Closed) with 404 when either is missing.
            pub async fn exchange_bind(&self, arguments: amqprs::channel::ExchangeBindArguments) -> crate::Result<()> {
                self.on_opening(|opening| crate::topology::exchange_bind(opening, arguments.clone())).await
            }

            /// Undoes an [`exchange_bind`](Self::exchange_bind) with the same arguments.
            ///
            /// # Errors
            /// [`Closed`](crate::Error::Closed) when the broker refuses.
            pub async fn exchange_unbind(
                &self,
                arguments: amqprs::channel::ExchangeUnbindArguments,
            ) -> crate::Result<()> {
                self.on_opening(|opening| crate::topology::exchange_unbind(opening, arguments.clone())).await
            }

            /// Sets how many unacknowledged deliveries the broker hands to each consumer that starts afterwards
            /// ([prefetch](https://www.rabbitmq.com/docs/consumer-prefetch)).
            ///
            /// # Errors
            /// [`Closed`](crate::Error::Closed) when the broker refuses: since RabbitMQ 4.3 it denies `global`.
            pub async fn basic_qos(&self, arguments: amqprs::channel::BasicQosArguments) -> crate::Result<()> {
                self.on_opening(|opening| crate::topology::basic_qos(opening, arguments.clone())).await
            }
        }
    };
}
pub(crate) use topology_calls;

/// amqprs panics on a longer name: AMQP's short strings have a length of one byte.
pub(crate) fn check_name(what: &str, name: &str) -> Result<()> {
    match name.len() {
        0..=255 => Ok(()),
        length => Err(Error::Invalid(format!("the {what} is {length} bytes long; AMQP allows 255"))),
    }
}

/// Without an answer the broker's refusal would meet whatever comes next.
fn check_answered(no_wait: bool) -> Result<()> {
    if no_wait { Err(Error::Invalid("no_wait would hide the broker's answer; leave it off".into())) } else { Ok(()) }
}

/// The queue's name, `exclusive` and `no_wait`, which amqprs keeps private: read off the debug print, where a name can
/// only look longer than it is. Returns the name, and whether the queue is exclusive.
fn check_declaration(arguments: &QueueDeclareArguments) -> Result<(String, bool)> {
    let print = format!("{arguments:?}");
    let (name, rest) = print
        .split_once("queue: \"")
        .and_then(|(_, rest)| rest.split_once("\", passive: "))
        .ok_or_else(|| Error::Invalid("this version of amqprs prints queue arguments in another way".into()))?;
    check_name("queue name", name)?;
    let is = |flag: &str| rest.split_once(flag).is_some_and(|(_, rest)| rest.starts_with("true"));
    check_answered(is("no_wait: "))?;
    Ok((name.to_owned(), is("exclusive: ")))
}

pub(crate) async fn queue_declare(opening: Arc<Opening>, arguments: QueueDeclareArguments) -> Result<QueueDeclared> {
    let (asked, exclusive) = check_declaration(&arguments)?;
    let doing = || format!("cannot declare queue `{asked}`");
    let declared = opening.call(doing, |raw| async move { raw.queue_declare(arguments).await }).await?;
    let (name, messages, consumers) = declared.unwrap_or_default();
    if asked.is_empty()
        && exclusive
        && let Some(own) = &mut *opening.own_queues.lock().unwrap_or_else(PoisonError::into_inner)
    {
        own.push(name.clone());
    }
    name.clone_into(&mut opening.last_queue.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(QueueDeclared { name, messages, consumers })
}

pub(crate) async fn queue_bind(opening: Arc<Opening>, arguments: QueueBindArguments) -> Result<()> {
    check_answered(arguments.no_wait)?;
    check_name("queue name", &arguments.queue)?;
    check_name("exchange name", &arguments.exchange)?;
    check_name("binding key", &arguments.routing_key)?;
    let (queue, exchange) = (arguments.queue.clone(), arguments.exchange.clone());
    let doing = || format!("cannot bind queue `{queue}` to exchange `{exchange}`");
    opening.call(doing, |raw| async move { raw.queue_bind(arguments).await }).await
}

pub(crate) async fn queue_unbind(opening: Arc<Opening>, arguments: QueueUnbindArguments) -> Result<()> {
    check_name("queue name", &arguments.queue)?;
    check_name("exchange name", &arguments.exchange)?;
    check_name("binding key", &arguments.routing_key)?;
    let (queue, exchange) = (arguments.queue.clone(), arguments.exchange.clone());
    let doing = || format!("cannot unbind queue `{queue}` from exchange `{exchange}`");
    opening.call(doing, |raw| async move { raw.queue_unbind(arguments).await }).await
}

pub(crate) async fn queue_purge(opening: Arc<Opening>, arguments: QueuePurgeArguments) -> Result<u32> {
    check_answered(arguments.no_wait)?;
    check_name("queue name", &arguments.queue)?;
    let queue = arguments.queue.clone();
    let doing = || format!("cannot purge queue `{queue}`");
    let purged = opening.call(doing, |raw| async move { raw.queue_purge(arguments).await }).await?;
    Ok(purged.unwrap_or_default())
}

pub(crate) async fn queue_delete(opening: Arc<Opening>, arguments: QueueDeleteArguments) -> Result<u32> {
    check_answered(arguments.no_wait)?;
    check_name("queue name", &arguments.queue)?;
    let queue = arguments.queue.clone();
    let doing = || format!("cannot delete queue `{queue}`");
    let deleted = opening.call(doing, |raw| async move { raw.queue_delete(arguments).await }).await?;
    if let Some(own) = &mut *opening.own_queues.lock().unwrap_or_else(PoisonError::into_inner) {
        own.retain(|own| *own != queue);
    }
    Ok(deleted.unwrap_or_default())
}

pub(crate) async fn exchange_declare(opening: Arc<Opening>, arguments: ExchangeDeclareArguments) -> Result<()> {
    check_answered(arguments.no_wait)?;
    check_name("exchange name", &arguments.exchange)?;
    check_name("exchange type", &arguments.exchange_type)?;
    let exchange = arguments.exchange.clone();
    let doing = || format!("cannot declare exchange `{exchange}`");
    opening.call(doing, |raw| async move { raw.exchange_declare(arguments).await }).await
}

pub(crate) async fn exchange_delete(opening: Arc<Opening>, arguments: ExchangeDeleteArguments) -> Result<()> {
    check_answered(arguments.no_wait)?;
    check_name("exchange name", &arguments.exchange)?;
    let exchange = arguments.exchange.clone();
    let doing = || format!("cannot delete exchange `{exchange}`");
    opening.call(doing, |raw| async move { raw.exchange_delete(arguments).await }).await
}

pub(crate) async fn exchange_bind(opening: Arc<Opening>, arguments: ExchangeBindArguments) -> Result<()> {
    check_answered(arguments.no_wait)?;
    check_name("exchange name", &arguments.destination)?;
    check_name("exchange name", &arguments.source)?;
    check_name("binding key", &arguments.routing_key)?;
    let (destination, source) = (arguments.destination.clone(), arguments.source.clone());
    let doing = || format!("cannot bind exchange `{destination}` to exchange `{source}`");
    opening.call(doing, |raw| async move { raw.exchange_bind(arguments).await }).await
}

pub(crate) async fn exchange_unbind(opening: Arc<Opening>, arguments: ExchangeUnbindArguments) -> Result<()> {
    check_answered(arguments.no_wait)?;
    check_name("exchange name", &arguments.destination)?;
    check_name("exchange name", &arguments.source)?;
    check_name("binding key", &arguments.routing_key)?;
    let (destination, source) = (arguments.destination.clone(), arguments.source.clone());
    let doing = || format!("cannot unbind exchange `{destination}` from exchange `{source}`");
    opening.call(doing, |raw| async move { raw.exchange_unbind(arguments).await }).await
}

pub(crate) async fn basic_qos(opening: Arc<Opening>, arguments: BasicQosArguments) -> Result<()> {
    let count = arguments.prefetch_count;
    let doing = || format!("cannot set a prefetch of {count}");
    opening.call(doing, |raw| async move { raw.basic_qos(arguments).await }).await?;
    *opening.prefetch.lock().unwrap_or_else(PoisonError::into_inner) = Some(count);
    Ok(())
}
