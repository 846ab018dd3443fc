//! Queues, exchanges and bindings: the same calls on a [`Setup`](crate::Setup), where they run again after every
//! loss, and on a [`Channel`](crate::Channel), where they run once.

use amqprs::channel::{
    BasicConsumeArguments, BasicQosArguments, ExchangeBindArguments, ExchangeDeclareArguments, ExchangeDeleteArguments,
    ExchangeUnbindArguments, QueueBindArguments, QueueDeleteArguments, QueuePurgeArguments, QueueUnbindArguments,
};
use amqprs::{FieldTable, FieldValue};
use std::{
    mem::take,
    sync::{Arc, PoisonError},
};

use crate::{
    Error, Result,
    encoding::{
        frame_size::{check_method_frame, method_frame},
        headers::rebuilt_arguments,
        short_string::check_name,
    },
    session::{
        Session,
        declared_arguments::{Checked, check_answered},
        queue::QueueDeclaration,
    },
};

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

/// Gives a type with `on_session`, which runs a call on its session, the topology calls.
macro_rules! topology_calls {
    ($type:ty) => {
        impl $type {
            /// Declares a queue: creates it, or checks that it exists with these arguments
            /// ([queues](https://www.rabbitmq.com/docs/queues)). With an empty name the broker makes one up.
            ///
            /// It takes a [`QueueDeclaration`](crate::QueueDeclaration), which also amqprs's own arguments become.
            ///
            /// ```no_run
            /// # async fn example(channel: common::Setup) -> common::Result<()> {
            /// use common::quorum_queue;
            ///
            /// channel.queue_declare(quorum_queue("jobs").with("x-delivery-limit", 5)).await?;
            /// # Ok(())
            /// # }
            /// ```
            ///
            /// # Errors
            /// - [`Closed`](crate::Error::Closed): with 406 when it exists with other arguments, or one of them has a
            ///   value that RabbitMQ does not take; with 404 when it is passive and missing; with 405 when it is exclusive to
            ///   another connection; with 541 when it is neither durable nor exclusive, and this RabbitMQ takes no such
            ///   queue.
            /// - [`Invalid`](crate::Error::Invalid): the declaration contradicts itself; nothing was sent.
            pub async fn queue_declare(
                &self,
                queue: impl Into<crate::QueueDeclaration>,
            ) -> crate::Result<crate::QueueDeclared> {
                let queue = queue.into();
                self.on_session(|session| crate::session::topology::queue_declare(session, queue.clone())).await
            }

            /// Binds a queue to an exchange: messages whose routing key fits the binding key come to the queue.
            ///
            /// # Errors
            /// [`Closed`](crate::Error::Closed) with 404 when either is missing.
            pub async fn queue_bind(&self, arguments: amqprs::channel::QueueBindArguments) -> crate::Result<()> {
                self.on_session(|session| crate::session::topology::queue_bind(session, arguments.clone())).await
            }

            /// Undoes a [`queue_bind`](Self::queue_bind) with the same arguments.
            ///
            /// # Errors
            /// [`Closed`](crate::Error::Closed) when the broker refuses.
            pub async fn queue_unbind(&self, arguments: amqprs::channel::QueueUnbindArguments) -> crate::Result<()> {
                self.on_session(|session| crate::session::topology::queue_unbind(session, arguments.clone())).await
            }

            /// Empties a queue, and tells how many messages were thrown away.
            ///
            /// # Errors
            /// [`Closed`](crate::Error::Closed) with 404 when it is missing.
            pub async fn queue_purge(&self, arguments: amqprs::channel::QueuePurgeArguments) -> crate::Result<u32> {
                self.on_session(|session| crate::session::topology::queue_purge(session, arguments.clone())).await
            }

            /// Deletes a queue (if unused, if empty, when asked so), and tells how many messages went with it.
            ///
            /// # Errors
            /// [`Closed`](crate::Error::Closed) with 406 when it is in use or not empty.
            pub async fn queue_delete(&self, arguments: amqprs::channel::QueueDeleteArguments) -> crate::Result<u32> {
                self.on_session(|session| crate::session::topology::queue_delete(session, arguments.clone())).await
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
                self.on_session(|session| crate::session::topology::exchange_declare(session, arguments.clone())).await
            }

            /// Deletes an exchange (if unused, when asked so).
            ///
            /// # Errors
            /// [`Closed`](crate::Error::Closed) with 406 when it is in use.
            pub async fn exchange_delete(
                &self,
                arguments: amqprs::channel::ExchangeDeleteArguments,
            ) -> crate::Result<()> {
                self.on_session(|session| crate::session::topology::exchange_delete(session, arguments.clone())).await
            }

            /// Binds an exchange to another one, from which it then receives
            /// ([exchange to exchange bindings](https://www.rabbitmq.com/docs/e2e)).
            ///
            /// # Errors
            /// [`Closed`](crate::Error::Closed) with 404 when either is missing.
            pub async fn exchange_bind(&self, arguments: amqprs::channel::ExchangeBindArguments) -> crate::Result<()> {
                self.on_session(|session| crate::session::topology::exchange_bind(session, arguments.clone())).await
            }

            /// Undoes an [`exchange_bind`](Self::exchange_bind) with the same arguments.
            ///
            /// # Errors
            /// [`Closed`](crate::Error::Closed) when the broker refuses.
            pub async fn exchange_unbind(
                &self,
                arguments: amqprs::channel::ExchangeUnbindArguments,
            ) -> crate::Result<()> {
                self.on_session(|session| crate::session::topology::exchange_unbind(session, arguments.clone())).await
            }

            /// Sets how many unacknowledged deliveries the broker hands to each consumer that starts afterwards
            /// ([prefetch](https://www.rabbitmq.com/docs/consumer-prefetch)). A count of 0 is no bound.
            ///
            /// # Errors
            /// [`Invalid`](crate::Error::Invalid) for a `prefetch_size` other than 0, and for `global`: RabbitMQ has never
            /// counted bytes, and a prefetch for a whole channel is gone from it or going (quorum queues never had it).
            pub async fn basic_qos(&self, arguments: amqprs::channel::BasicQosArguments) -> crate::Result<()> {
                self.on_session(|session| crate::session::topology::basic_qos(session, arguments.clone())).await
            }
        }
    };
}
pub(crate) use topology_calls;

/// Makes the arguments of a declaration or binding fit to be sent with these names: RabbitMQ would close the whole connection
/// over a table with a wrong length, or one that is larger than a frame.
fn fit(doing: &str, names: &[&str], arguments: &mut FieldTable, session: &Session) -> Result<()> {
    *arguments = rebuilt_arguments(doing, take(arguments))?;
    check_method_frame(doing, method_frame(names, arguments)?, session.frame_max)
}

/// The same for a consumer.
pub(crate) fn fit_consume(mut arguments: BasicConsumeArguments, session: &Session) -> Result<BasicConsumeArguments> {
    check_consume(&arguments)?;
    let doing = format!("cannot consume from queue `{}`", arguments.queue);
    fit(&doing, &[&arguments.queue, &arguments.consumer_tag], &mut arguments.arguments, session)?;
    Ok(arguments)
}

/// What would close the channel or the connection.
fn check_consume(arguments: &BasicConsumeArguments) -> Result<()> {
    check_answered(arguments.no_wait)?;
    check_name("queue name", &arguments.queue)?;
    check_name("consumer tag", &arguments.consumer_tag)?;
    let offset = arguments.arguments.as_ref().iter().find(|(name, _)| name.as_ref() == "x-stream-offset");
    if let Some((_, FieldValue::S(offset))) = offset {
        let offset: &String = offset.as_ref();
        let is_age = |(count, unit): (&str, &str)| {
            ["Y", "M", "D", "h", "m", "s"].contains(&unit) && count.parse::<u32>().is_ok()
        };
        let last = offset.char_indices().last().map_or(0, |(last, _)| last);
        if !(["first", "last", "next"].contains(&&**offset) || is_age(offset.split_at(last))) {
            return Err(Error::Invalid(format!(
                "`x-stream-offset` is `{offset}`; it has to be `first`, `last`, `next`, an age such as `7D` or `1h`, a number, \
                 or a time"
            )));
        }
    }
    Ok(())
}

pub(crate) async fn queue_declare(session: Arc<Session>, queue: QueueDeclaration) -> Result<QueueDeclared> {
    let Checked { arguments, name: asked, size, exclusive, shared_and_transient } = queue.check()?;
    let doing = || format!("cannot declare queue `{asked}`");
    check_method_frame(&doing(), size, session.frame_max)?;
    let declared = session.call(doing, |raw| async move { raw.queue_declare(arguments).await }).await;
    let (name, messages, consumers) = declared
        .map_err(|error| match shared_and_transient {
            true => error.blame(doing, "transient_nonexcl_queues"),
            false => error,
        })?
        .unwrap_or_default();
    if asked.is_empty()
        && exclusive
        && let Some(own) = &mut *session.own_queues.lock().unwrap_or_else(PoisonError::into_inner)
    {
        own.push(name.clone());
    }
    name.clone_into(&mut session.last_queue.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(QueueDeclared { name, messages, consumers })
}

pub(crate) async fn queue_bind(session: Arc<Session>, mut arguments: QueueBindArguments) -> Result<()> {
    check_answered(arguments.no_wait)?;
    check_name("queue name", &arguments.queue)?;
    check_name("exchange name", &arguments.exchange)?;
    check_name("binding key", &arguments.routing_key)?;
    let (queue, exchange) = (arguments.queue.clone(), arguments.exchange.clone());
    let doing = || format!("cannot bind queue `{queue}` to exchange `{exchange}`");
    let names = [&*queue, &exchange, &arguments.routing_key];
    fit(&doing(), &names, &mut arguments.arguments, &session)?;
    session.call(doing, |raw| async move { raw.queue_bind(arguments).await }).await
}

pub(crate) async fn queue_unbind(session: Arc<Session>, mut arguments: QueueUnbindArguments) -> Result<()> {
    check_name("queue name", &arguments.queue)?;
    check_name("exchange name", &arguments.exchange)?;
    check_name("binding key", &arguments.routing_key)?;
    let (queue, exchange) = (arguments.queue.clone(), arguments.exchange.clone());
    let doing = || format!("cannot unbind queue `{queue}` from exchange `{exchange}`");
    let names = [&*queue, &exchange, &arguments.routing_key];
    fit(&doing(), &names, &mut arguments.arguments, &session)?;
    session.call(doing, |raw| async move { raw.queue_unbind(arguments).await }).await
}

pub(crate) async fn queue_purge(session: Arc<Session>, arguments: QueuePurgeArguments) -> Result<u32> {
    check_answered(arguments.no_wait)?;
    check_name("queue name", &arguments.queue)?;
    let queue = arguments.queue.clone();
    let doing = || format!("cannot purge queue `{queue}`");
    let purged = session.call(doing, |raw| async move { raw.queue_purge(arguments).await }).await;
    Ok(purged.map_err(|error| error.blame(doing, &format!("queue '{queue}'")))?.unwrap_or_default())
}

pub(crate) async fn queue_delete(session: Arc<Session>, arguments: QueueDeleteArguments) -> Result<u32> {
    check_answered(arguments.no_wait)?;
    check_name("queue name", &arguments.queue)?;
    let queue = arguments.queue.clone();
    let doing = || format!("cannot delete queue `{queue}`");
    let deleted = session.call(doing, |raw| async move { raw.queue_delete(arguments).await }).await?;
    if let Some(own) = &mut *session.own_queues.lock().unwrap_or_else(PoisonError::into_inner) {
        own.retain(|own| *own != queue);
    }
    Ok(deleted.unwrap_or_default())
}

pub(crate) async fn exchange_declare(session: Arc<Session>, mut arguments: ExchangeDeclareArguments) -> Result<()> {
    check_answered(arguments.no_wait)?;
    check_name("exchange name", &arguments.exchange)?;
    check_name("exchange type", &arguments.exchange_type)?;
    if arguments.exchange_type.is_empty() && !arguments.passive {
        return Err(Error::Invalid(format!("exchange `{}` needs a type, such as `fanout`", arguments.exchange)));
    }
    let (exchange, kind) = (arguments.exchange.clone(), arguments.exchange_type.clone());
    let doing = || format!("cannot declare exchange `{exchange}`");
    let names = [&*exchange, &kind];
    fit(&doing(), &names, &mut arguments.arguments, &session)?;
    let declared = session.call(doing, |raw| async move { raw.exchange_declare(arguments).await }).await;
    // RabbitMQ 3 closes the connection for it.
    declared.map_err(|error| error.blame(doing, &format!("exchange type '{kind}'")))
}

pub(crate) async fn exchange_delete(session: Arc<Session>, arguments: ExchangeDeleteArguments) -> Result<()> {
    check_answered(arguments.no_wait)?;
    check_name("exchange name", &arguments.exchange)?;
    let exchange = arguments.exchange.clone();
    let doing = || format!("cannot delete exchange `{exchange}`");
    session.call(doing, |raw| async move { raw.exchange_delete(arguments).await }).await
}

pub(crate) async fn exchange_bind(session: Arc<Session>, mut arguments: ExchangeBindArguments) -> Result<()> {
    check_answered(arguments.no_wait)?;
    check_name("exchange name", &arguments.destination)?;
    check_name("exchange name", &arguments.source)?;
    check_name("binding key", &arguments.routing_key)?;
    let (destination, source) = (arguments.destination.clone(), arguments.source.clone());
    let doing = || format!("cannot bind exchange `{destination}` to exchange `{source}`");
    let names = [&*destination, &source, &arguments.routing_key];
    fit(&doing(), &names, &mut arguments.arguments, &session)?;
    session.call(doing, |raw| async move { raw.exchange_bind(arguments).await }).await
}

pub(crate) async fn exchange_unbind(session: Arc<Session>, mut arguments: ExchangeUnbindArguments) -> Result<()> {
    check_answered(arguments.no_wait)?;
    check_name("exchange name", &arguments.destination)?;
    check_name("exchange name", &arguments.source)?;
    check_name("binding key", &arguments.routing_key)?;
    let (destination, source) = (arguments.destination.clone(), arguments.source.clone());
    let doing = || format!("cannot unbind exchange `{destination}` from exchange `{source}`");
    let names = [&*destination, &source, &arguments.routing_key];
    fit(&doing(), &names, &mut arguments.arguments, &session)?;
    session.call(doing, |raw| async move { raw.exchange_unbind(arguments).await }).await
}

pub(crate) async fn basic_qos(session: Arc<Session>, arguments: BasicQosArguments) -> Result<()> {
    if arguments.prefetch_size != 0 {
        return Err(Error::Invalid(
            "RabbitMQ cannot limit a prefetch by its size and would close the connection: set `prefetch_size` to 0 and \
             choose a `prefetch_count`"
                .into(),
        ));
    }
    if arguments.global {
        return Err(Error::Invalid(
            "a prefetch for the whole channel (`global`) is deprecated in RabbitMQ, and quorum queues have never had it: \
             leave `global` off, and each consumer has the prefetch"
                .into(),
        ));
    }
    let count = arguments.prefetch_count;
    let doing = || format!("cannot set a prefetch of {count}");
    session.call(doing, |raw| async move { raw.basic_qos(arguments).await }).await?;
    *session.prefetch.lock().unwrap_or_else(PoisonError::into_inner) = Some(count);
    Ok(())
}
